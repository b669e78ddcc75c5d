//! `wirelane services`.

use wirelane_proto::v1::{BackendView, Frontend, Protocol, ServiceView, frontend};

use super::{
    endpoint,
    grid::{Column::Number, Column::Text, grid},
};

/// One row for each port of a service, with a line for each frontend and each backend.
pub fn services_table(services: &[ServiceView]) -> String {
    if services.is_empty() {
        return "no services\n".to_owned();
    }
    let columns = [
        Text("service"),
        Text("port_name"),
        Text("protocol"),
        Text("frontends"),
        Text("backends"),
        Text("pod"),
        Text("node"),
        Number("flows"),
        Number("packets"),
        Number("bytes"),
        Text(""),
    ];
    grid(
        columns,
        services.iter().map(|view| {
            let lines = |line: fn(&BackendView) -> String| {
                view.backends.iter().map(line).collect::<Vec<_>>().join("\n")
            };
            let backends = lines(|view| {
                view.backend.as_ref().map(|to| endpoint(&to.address, to.port)).unwrap_or_default()
            });
            [
                view.service.clone(),
                view.port_name.clone(),
                protocol_name(view.protocol).to_owned(),
                view.frontends.iter().map(frontend_line).collect::<Vec<_>>().join("\n"),
                if backends.is_empty() { "none".to_owned() } else { backends },
                lines(|view| view.backend.as_ref().map(|to| to.pod.clone()).unwrap_or_default()),
                lines(|view| view.backend.as_ref().map(|to| to.node.clone()).unwrap_or_default()),
                lines(|view| view.flows.to_string()),
                lines(|view| view.packets.to_string()),
                lines(|view| view.bytes.to_string()),
                lines(|view| if view.removed { "removed" } else { "" }.to_owned()).trim_end().to_owned(),
            ]
        }),
    )
}

/// The protocol's name without its prefix: "TCP".
pub(super) fn protocol_name(protocol: i32) -> &'static str {
    let name = Protocol::try_from(protocol).unwrap_or_default().as_str_name();
    name.strip_prefix("PROTOCOL_").unwrap_or(name)
}

/// The kind's name as in the contract: "CLUSTER_IP".
pub(super) fn frontend_kind(kind: i32) -> &'static str {
    frontend::Kind::try_from(kind).unwrap_or_default().as_str_name()
}

fn frontend_line(frontend: &Frontend) -> String {
    format!("{} {}", frontend_kind(frontend.kind), endpoint(&frontend.address, frontend.port))
}
