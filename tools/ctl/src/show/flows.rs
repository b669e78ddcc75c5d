//! `wirelane flows`.

use wirelane_proto::v1::Flow;

use super::{
    grid::{Column::Number, Column::Text, grid},
    protocol, tuple,
};

/// One line a flow. Packets and bytes are those of the original direction, then those of the replies.
pub fn flows_table(flows: &[Flow]) -> String {
    if flows.is_empty() {
        return "no flows\n".to_owned();
    }
    let columns = [
        Text("protocol"),
        Text("original"),
        Text("reply"),
        Text("state"),
        Number("packets"),
        Number("bytes"),
        Number("idle_ms"),
        Text("service"),
        Text("backend"),
        Text("egress_rule"),
        Text("ingress_rule"),
    ];
    grid(
        columns,
        flows.iter().map(|flow| {
            [
                protocol(flow.protocol),
                tuple(flow.original.as_ref()),
                tuple(flow.reply.as_ref()),
                flow.state.clone(),
                format!("{}+{}", flow.packets, flow.reply_packets),
                format!("{}+{}", flow.bytes, flow.reply_bytes),
                flow.idle_ms.to_string(),
                flow.service.clone(),
                flow.backend.clone(),
                flow.egress_rule.clone(),
                flow.ingress_rule.clone(),
            ]
        }),
    )
}
