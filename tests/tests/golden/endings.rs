//! What becomes of flows whose backends cease to serve, or are gone.

use wirelane_dataplane::tables::UPLINK_PORT;
use wirelane_dataplane::tables::objects::{Backend, Object, ObjectKey, Pod, Usable};
use wirelane_dataplane::verdict::DropReason::{BackendGone, NoBackend, ServiceUndefined};
use wirelane_tests::cluster::{API, IDENTITY_API, WEB, addr, service};
use wirelane_tests::node::Control;
use wirelane_tests::packet::*;

use super::link::Link;
use super::{KNOWN, NEW, Row, row};

pub fn rows() -> Vec<Row> {
    [datagrams(), connections()].into_iter().flatten().collect()
}

/// The stages that see a packet whose flow ends with it, and which begins none.
const TO_SERVICE: &[&str] = &["parse", "conntrack", "service"];
/// The stages that see a packet of a flow that has ended.
const TO_ENDED: &[&str] = &["parse", "conntrack"];

fn datagrams() -> Vec<Row> {
    let question =
        |sport: u16| udp().from("198.51.100.9:0").source_port(sport).to("192.0.2.1:30053").payload(b"?");
    let asked = |sport: u16| question(sport).from_net(254);
    let at_web = |sport: u16| {
        question(sport).from("10.244.1.1:0").source_port(sport).to("10.244.1.10:5353").hop().to_pod(WEB)
    };
    let at_api = |sport: u16| {
        question(sport).from("10.244.1.1:0").source_port(sport).to("10.244.1.11:5353").hop().to_pod(API)
    };
    let from_pod = |sport: u16, to: &str| udp().from("10.244.1.10:0").source_port(sport).to(to).payload(b"?");
    vec![
        row("a UDP flow whose backend does not serve any more goes to another at once")
            .after(UPLINK_PORT, asked(1800))
            .told(|control| dns(control, &[not_serving(API_ADDRESS), serving(WEB_ADDRESS)]))
            .input(UPLINK_PORT, asked(1800))
            .via(NEW)
            .forwards(WEB, at_web(1800)),
        row("a UDP flow whose backend is gone goes to another at once, though there is a grace")
            .after(UPLINK_PORT, asked(1801))
            .told(|control| dns(control, &[serving(WEB_ADDRESS)]))
            .input(UPLINK_PORT, asked(1801))
            .via(NEW)
            .forwards(WEB, at_web(1801)),
        row("a UDP flow to a Service without endpoints is refused from then on")
            .after(WEB, from_pod(1802, "10.96.0.12:53").from_pod(WEB))
            .told(|control| dns(control, &[]))
            .input(WEB, from_pod(1802, "10.96.0.12:53").from_pod(WEB))
            .via(TO_SERVICE)
            .ends_flow()
            .refuses(NoBackend, port_unreachable(&from_pod(1802, "10.96.0.12:53")).to_pod(WEB)),
        row("a UDP flow to a Service that is gone leads nowhere")
            .after(WEB, from_pod(1803, "10.96.0.12:53").from_pod(WEB))
            .told(|control| control.change(vec![], &[ObjectKey::Service("shop/dns".into())]))
            .input(WEB, from_pod(1803, "10.96.0.12:53").from_pod(WEB))
            .via(TO_SERVICE)
            .ends_flow()
            .drops(ServiceUndefined),
        row("a UDP flow stays with a backend that serves, though no new one may go there: terminating")
            .after(UPLINK_PORT, asked(1804))
            .told(|control| dns(control, &[unused(API_ADDRESS, Usable::Terminating), serving(WEB_ADDRESS)]))
            .input(UPLINK_PORT, asked(1804))
            .via(KNOWN)
            .forwards(API, at_api(1804)),
        row("a UDP flow stays with a backend that serves, though no new one may go there: another zone")
            .after(UPLINK_PORT, asked(1805))
            .told(|control| dns(control, &[unused(API_ADDRESS, Usable::OtherZone), serving(WEB_ADDRESS)]))
            .input(UPLINK_PORT, asked(1805))
            .via(KNOWN)
            .forwards(API, at_api(1805)),
        row("a UDP flow stays with a backend that serves, though no new one may go there: weight 0")
            .after(UPLINK_PORT, asked(1806))
            .told(|control| dns(control, &[unused(API_ADDRESS, Usable::Drained), serving(WEB_ADDRESS)]))
            .input(UPLINK_PORT, asked(1806))
            .via(KNOWN)
            .forwards(API, at_api(1806)),
        row("an answer that is under way when its sender ceases to serve still arrives")
            .after(UPLINK_PORT, asked(1807))
            .told(|control| dns(control, &[not_serving(API_ADDRESS), serving(WEB_ADDRESS)]))
            .input(API, udp().from("10.244.1.11:5353").to("10.244.1.1:1807").payload(b"!").from_pod(API))
            .via(KNOWN)
            .forwards(
                UPLINK_PORT,
                udp().from("192.0.2.1:30053").to("198.51.100.9:1807").payload(b"!").hop().to_net(254),
            ),
        row("a UDP flow that went to an address before a Service had it goes to the Service")
            .after(WEB, from_pod(1808, "198.51.100.53:53").from_pod(WEB))
            .told(|control| {
                let late = service(
                    "shop/late",
                    proto::UDP,
                    &[("198.51.100.53", 53)],
                    None,
                    &[("10.244.1.11", 5353)],
                );
                control.change(vec![late], &[]);
            })
            .input(WEB, from_pod(1808, "198.51.100.53:53").from_pod(WEB))
            .via(NEW)
            .forwards(API, from_pod(1808, "10.244.1.11:5353").hop().to_pod(API)),
    ]
}

fn connections() -> Vec<Row> {
    let begun =
        |sport: u16| tcp().from("10.244.1.11:0").source_port(sport).to("10.96.0.10:80").syn().from_pod(API);
    let goes_on = |sport: u16| {
        tcp()
            .from("10.244.1.11:0")
            .source_port(sport)
            .to("10.96.0.10:80")
            .numbers(7, 99)
            .payload(b"four")
            .from_pod(API)
    };
    let at_web = |sport: u16| goes_on(sport).to("10.244.1.10:8080").hop().to_pod(WEB);
    let reset = |sport: u16| {
        tcp()
            .from("10.96.0.10:80")
            .to(&format!("10.244.1.11:{sport}"))
            .flags(flag::RST)
            .numbers(99, 0)
            .window(0)
            .to_pod(API)
    };
    vec![
        row("a TCP connection stays with a backend that is there and does not serve")
            .after(API, begun(1820))
            .told(|control| web(control, &[Backend { port: 8080, ..not_serving(WEB_ADDRESS) }]))
            .input(API, goes_on(1820))
            .via(KNOWN)
            .forwards(WEB, at_web(1820)),
        row("a TCP connection stays with a backend that is gone, within its grace")
            .after(API, begun(1821))
            .told(|control| web(control, &[]))
            .input(API, goes_on(1821))
            .via(KNOWN)
            .forwards(WEB, at_web(1821)),
        row("a TCP connection to a backend that is gone is reset after the grace, where the client stands")
            .after(API, begun(1822))
            .told(|control| web(control, &[]))
            .told(Control::end_graces)
            .input(API, goes_on(1822))
            .via(TO_ENDED)
            .refuses(BackendGone, reset(1822)),
        row("a TCP connection to a backend that is gone is reset after the grace, where the backend stands")
            .after(API, begun(1823))
            .told(|control| web(control, &[]))
            .told(Control::end_graces)
            .input(WEB, tcp().from("10.244.1.10:8080").to("10.244.1.11:1823").numbers(5, 17).payload(b"x").from_pod(WEB))
            .via(TO_ENDED)
            .refuses(
                BackendGone,
                tcp().from("10.244.1.11:1823").to("10.244.1.10:8080").flags(flag::RST).numbers(17, 0).window(0).to_pod(WEB),
            ),
        row("a TCP connection to a Service that is gone is reset after the grace")
            .after(API, begun(1824))
            .told(|control| control.change(vec![], &[ObjectKey::Service("shop/web".into())]))
            .told(Control::end_graces)
            .input(API, goes_on(1824))
            .via(TO_ENDED)
            .refuses(BackendGone, reset(1824)),
        row("a backend that comes back within the grace keeps its connections beyond it")
            .after(API, begun(1825))
            .told(|control| web(control, &[]))
            .told(|control| web(control, &[Backend::new(addr(WEB_ADDRESS), 8080)]))
            .told(Control::end_graces)
            .input(API, goes_on(1825))
            .via(KNOWN)
            .forwards(WEB, at_web(1825)),
        row("a connection begins anew with the ports of one whose backend is gone")
            .after(API, begun(1826))
            .told(|control| web(control, &[Backend { port: 9090, ..Backend::new(addr(WEB_ADDRESS), 0) }]))
            .told(Control::end_graces)
            .input(API, begun(1826))
            .via(NEW)
            .forwards(WEB, begun(1826).to("10.244.1.10:9090").hop().to_pod(WEB)),
        row("a reset of a connection whose backend is gone is not answered")
            .after(API, begun(1827))
            .told(|control| web(control, &[]))
            .told(Control::end_graces)
            .input(API, goes_on(1827).flags(flag::RST))
            .via(TO_ENDED)
            .refuses_in_silence(BackendGone),
        row("who gets the address of a backend that is gone does not get its connections")
            .after(API, begun(1828))
            .told(|control| web(control, &[]))
            .told(|control| {
                let pod = Pod {
                    name: "shop/heir".into(),
                    addresses: vec![addr(WEB_ADDRESS)],
                    node: "node1".into(),
                    identity: IDENTITY_API,
                };
                control.change(vec![Object::Pod(pod)], &[]);
            })
            .input(API, goes_on(1828))
            .via(TO_ENDED)
            .refuses(BackendGone, reset(1828)),
        row("who has the address of a backend as another pod of the same Service does not get its connections")
            .told(|control| web(control, &[of_pod("shop/web")]))
            .after(API, begun(1829))
            .told(|control| {
                let name = |name: &str| Pod {
                    name: name.into(),
                    addresses: vec![addr(WEB_ADDRESS)],
                    node: "node1".into(),
                    identity: IDENTITY_API,
                };
                control.change(vec![Object::Pod(name("shop/web-2"))], &[]);
                web(control, &[of_pod("shop/web-2")]);
            })
            .input(API, goes_on(1829))
            .via(TO_ENDED)
            .refuses(BackendGone, reset(1829)),
    ]
}

const WEB_ADDRESS: &str = "10.244.1.10";
const API_ADDRESS: &str = "10.244.1.11";

fn serving(address: &str) -> Backend {
    Backend::new(addr(address), 5353)
}

fn not_serving(address: &str) -> Backend {
    Backend { serving: false, ..unused(address, Usable::NotReady) }
}

fn unused(address: &str, why: Usable) -> Backend {
    Backend { cluster: why, local: why, ..serving(address) }
}

fn of_pod(pod: &str) -> Backend {
    Backend { pod: pod.into(), ..Backend::new(addr(WEB_ADDRESS), 8080) }
}

/// The Service of the standard cluster, with other backends.
fn dns(control: &mut Control, backends: &[Backend]) {
    with_backends(
        control,
        service("shop/dns", proto::UDP, &[("10.96.0.12", 53)], Some(30053), &[]),
        backends,
    );
}

fn web(control: &mut Control, backends: &[Backend]) {
    with_backends(
        control,
        service("shop/web", proto::TCP, &[("10.96.0.10", 80)], Some(30080), &[]),
        backends,
    );
}

fn with_backends(control: &mut Control, mut service: Object, backends: &[Backend]) {
    if let Object::Service(service) = &mut service {
        service.ports[0].backends = backends.to_vec();
    }
    control.change(vec![service], &[]);
}
