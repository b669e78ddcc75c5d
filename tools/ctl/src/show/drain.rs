//! `wirelane drain`: what backends that get nothing new still have.

use serde_json::{Value, json};
use wirelane_proto::v1::{BackendView, ServiceView};

use super::{
    endpoint,
    grid::{Column::Number, Column::Text, grid},
    json::backend_view,
    services::{drains, protocol_name},
};

/// What is left at backends that get no new connections.
#[derive(Debug)]
pub struct Drain {
    left: Vec<(ServiceView, BackendView, &'static str)>,
}

impl Drain {
    /// Of one service ("namespace/name"), or of all.
    pub fn of(services: Vec<ServiceView>, service: Option<&str>) -> Drain {
        let mut left = Vec::new();
        for mut view in services {
            if service.is_some_and(|name| name != view.service) {
                continue;
            }
            let backends = std::mem::take(&mut view.backends);
            left.extend(backends.into_iter().filter_map(|to| drains(&to).map(|why| (view.clone(), to, why))));
        }
        Drain { left }
    }

    /// Whether nothing is left.
    pub fn is_over(&self) -> bool {
        self.flows() == 0
    }

    /// How many connections are left.
    pub fn flows(&self) -> u64 {
        self.left.iter().map(|(_, to, _)| to.flows).sum()
    }

    /// One line a backend.
    pub fn table(&self) -> String {
        if self.left.is_empty() {
            return "no backend drains\n".to_owned();
        }
        let columns = [
            Text("service"),
            Text("port_name"),
            Text("protocol"),
            Text("backend"),
            Text("pod"),
            Text("node"),
            Text("state"),
            Number("flows"),
            Number("packets"),
            Number("bytes"),
        ];
        grid(
            columns,
            self.left.iter().map(|(view, to, why)| {
                let backend = to.backend.clone().unwrap_or_default();
                [
                    view.service.clone(),
                    view.port_name.clone(),
                    protocol_name(view.protocol).to_owned(),
                    endpoint(&backend.address, backend.port),
                    backend.pod,
                    backend.node,
                    (*why).to_owned(),
                    to.flows.to_string(),
                    to.packets.to_string(),
                    to.bytes.to_string(),
                ]
            }),
        )
    }

    /// As the table, and the sum.
    pub fn json(&self) -> Value {
        let one = |(view, to, why): &(ServiceView, BackendView, &str)| {
            json!({
                "service": view.service,
                "port_name": view.port_name,
                "protocol": protocol_name(view.protocol),
                "state": why,
                "backend": backend_view(to),
            })
        };
        json!({ "flows": self.flows(), "backends": self.left.iter().map(one).collect::<Vec<_>>() })
    }
}

#[cfg(test)]
mod tests {
    use wirelane_proto::v1::{Backend, Usable};

    use super::*;

    fn service(name: &str, backends: &[(u8, Usable, u64)]) -> ServiceView {
        let backend = |(last, usable, flows): &(u8, Usable, u64)| BackendView {
            backend: Some(Backend {
                address: vec![10, 244, 1, *last],
                port: 8080,
                cluster: (*usable).into(),
                local: (*usable).into(),
                serving: true,
                ..Backend::default()
            }),
            flows: *flows,
            ..BackendView::default()
        };
        let backends = backends.iter().map(backend).collect();
        ServiceView { service: name.to_owned(), protocol: 1, backends, ..ServiceView::default() }
    }

    #[test]
    fn what_gets_new_connections_does_not_drain() {
        let services = vec![
            service("shop/web", &[(5, Usable::Chosen, 7), (6, Usable::Terminating, 2)]),
            service("shop/db", &[(7, Usable::Drained, 1)]),
        ];
        let all = Drain::of(services.clone(), None);
        assert_eq!((all.flows(), all.is_over()), (3, false));
        let web = Drain::of(services.clone(), Some("shop/web"));
        assert_eq!(web.flows(), 2);
        assert_eq!(
            web.table(),
            "service   protocol  backend          state        flows  packets  bytes\n\
             shop/web  TCP       10.244.1.6:8080  terminating      2        0      0\n"
        );
        assert_eq!(web.json()["backends"][0]["state"], "terminating");
        assert!(Drain::of(services, Some("shop/other")).is_over());
    }

    #[test]
    fn a_backend_without_connections_is_shown_and_has_drained() {
        let drain = Drain::of(vec![service("shop/db", &[(7, Usable::Drained, 0)])], None);
        assert!(drain.is_over() && drain.table().contains("weight is 0"), "{}", drain.table());
    }
}
