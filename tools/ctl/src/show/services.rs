//! `wirelane services`.

use wirelane_proto::v1::{
    Algorithm, Backend, BackendView, Frontend, Protocol, ServiceView, Usable, frontend,
};

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
        Text("rules"),
        Text("frontends"),
        Text("backends"),
        Text("pod"),
        Text("node"),
        Text("state"),
        Number("weight"),
        Number("flows"),
        Number("packets"),
        Number("bytes"),
    ];
    grid(
        columns,
        services.iter().map(|view| {
            let lines = |line: fn(&BackendView) -> String| {
                view.backends.iter().map(line).collect::<Vec<_>>().join("\n")
            };
            let of = |line: fn(&Backend) -> String| {
                let line = |view: &BackendView| view.backend.as_ref().map(line).unwrap_or_default();
                view.backends.iter().map(line).collect::<Vec<_>>().join("\n")
            };
            let backends = of(|to| endpoint(&to.address, to.port));
            [
                view.service.clone(),
                view.port_name.clone(),
                protocol_name(view.protocol).to_owned(),
                rules(view),
                view.frontends.iter().map(frontend_line).collect::<Vec<_>>().join("\n"),
                if backends.is_empty() { "none".to_owned() } else { backends },
                of(|to| to.pod.clone()),
                of(|to| to.node.clone()),
                lines(state),
                of(|to| to.weight.to_string()),
                lines(|view| view.flows.to_string()),
                lines(|view| view.packets.to_string()),
                lines(|view| view.bytes.to_string()),
            ]
        }),
    )
}

/// Whether new connections go to a backend, and what becomes of those that it has, in words.
pub(super) fn state(view: &BackendView) -> String {
    let Some(backend) = &view.backend else { return String::new() };
    if let Some(drained) = drains(view) {
        return drained.to_owned();
    }
    match (usable(backend.cluster), usable(backend.local)) {
        (Usable::Chosen, Usable::Chosen) => "in use".to_owned(),
        // A backend on this node is not left out for being elsewhere.
        (Usable::Chosen, Usable::OtherNode) => "in use; not for Local: on another node".to_owned(),
        (Usable::Chosen, why) => format!("in use; not for Local: {}", words(why)),
        (why, Usable::Chosen) => format!("in use for Local; not for Cluster: {}", words(why)),
        (why, _) => format!("not used: {}", words(why)),
    }
}

/// Why a backend gets no new connections from anywhere and shall lose those that it has; `None` if that is not so.
pub(super) fn drains(view: &BackendView) -> Option<&'static str> {
    if view.removed {
        return Some(if view.ended { "gone: its connections are reset" } else { "gone, within its grace" });
    }
    let backend = view.backend.as_ref()?;
    let reasons = [usable(backend.cluster), usable(backend.local)];
    if reasons.contains(&Usable::Chosen) {
        return None;
    }
    reasons.into_iter().find_map(|reason| match (reason, backend.serving) {
        (Usable::NotReady, true) => Some("not ready"),
        (Usable::NotReady, false) => Some("not ready, not serving"),
        (Usable::Terminating, true) => Some("terminating"),
        (Usable::Terminating, false) => Some("terminating, not serving"),
        (Usable::Drained, _) => Some("drained: its weight is 0"),
        _ => None,
    })
}

/// Why a backend is not used.
pub(super) fn words(usable: Usable) -> &'static str {
    match usable {
        Usable::Unspecified => "nobody says why",
        Usable::Chosen => "in use",
        Usable::NotReady => "not ready",
        Usable::Terminating => "terminating, while others are ready",
        Usable::OtherNode => "on another node",
        Usable::OtherZone => "in another zone",
        Usable::Drained => "its weight is 0",
    }
}

pub(super) fn usable(number: i32) -> Usable {
    Usable::try_from(number).unwrap_or_default()
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

/// The algorithm's name as in the contract: "RANDOM".
pub(super) fn algorithm_name(algorithm: i32) -> &'static str {
    Algorithm::try_from(algorithm).unwrap_or_default().as_str_name()
}

fn frontend_line(frontend: &Frontend) -> String {
    let announced = if frontend.announced { " announced" } else { "" };
    format!("{} {}{announced}", frontend_kind(frontend.kind), endpoint(&frontend.address, frontend.port))
}

/// What of a port's rules is not as usual.
fn rules(view: &ServiceView) -> String {
    let rules = [
        (view.algorithm == i32::from(Algorithm::Maglev)).then(|| "Maglev".to_owned()),
        (view.affinity_seconds > 0).then(|| format!("affinity {} s", view.affinity_seconds)),
        view.external_local.then(|| "external Local".to_owned()),
        view.internal_local.then(|| "internal Local".to_owned()),
        view.direct_return.then(|| "direct return".to_owned()),
    ];
    rules.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(cluster: Usable, local: Usable, serving: bool) -> BackendView {
        let backend = Backend {
            cluster: cluster.into(),
            local: local.into(),
            serving,
            weight: 1,
            ..Backend::default()
        };
        BackendView { backend: Some(backend), ..BackendView::default() }
    }

    #[test]
    fn the_state_of_a_backend_is_said_in_words() {
        use Usable::{Chosen, Drained, NotReady, OtherNode, OtherZone, Terminating};
        for (view, text, drains) in [
            (view(Chosen, Chosen, true), "in use", false),
            (view(Chosen, OtherNode, true), "in use; not for Local: on another node", false),
            (view(OtherZone, Chosen, true), "in use for Local; not for Cluster: in another zone", false),
            (view(OtherZone, OtherNode, true), "not used: in another zone", false),
            (view(NotReady, NotReady, false), "not ready, not serving", true),
            (view(Terminating, OtherNode, true), "terminating", true),
            (view(Drained, Drained, true), "drained: its weight is 0", true),
            (BackendView { removed: true, ..view(Chosen, Chosen, true) }, "gone, within its grace", true),
            (
                BackendView { removed: true, ended: true, ..view(Chosen, Chosen, true) },
                "gone: its connections are reset",
                true,
            ),
        ] {
            assert_eq!((state(&view).as_str(), super::drains(&view).is_some()), (text, drains));
        }
    }
}
