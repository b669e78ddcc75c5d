//! The steering programs: loaded, fed and attached. The uplink has one, and all other interfaces share one.
//!
//! Attached over netlink, so that it stays when this process ends, whichever way. Until a next run replaces it,
//! in one step, it does with our frames what `when_unbound` says.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, XskMap};
use aya::programs::{ProgramInfo, Xdp, loaded_programs};
use aya::{Ebpf, EbpfLoader};
use ipnet::IpNet;
use netlink_packet_route::link::{LinkAttribute, LinkXdp, XdpAttached};
use rtnetlink::LinkUnspec;

use super::{KernelError, Netlink, links};

/// Which frames of an interface are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// All.
    Pod,
    /// Those that [`SteeringRules`] name.
    Uplink,
}

/// What becomes of our frames while their queue has no socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenUnbound {
    /// They are dropped.
    #[default]
    Drop,
    /// The kernel gets them.
    Pass,
}

/// How the program is to be attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native, or generic where the driver does not take it.
    #[default]
    Auto,
    /// By the driver, before the kernel makes a socket buffer of the frame.
    Native,
    /// By the kernel, for any driver, slowly.
    Generic,
}

/// What is ours on an uplink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SteeringRules {
    /// The node's own addresses.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Destinations that are ours, whatever the packet: this node's pods, virtual addresses of Services.
    pub prefixes: BTreeSet<IpNet>,
    /// TCP ports of the node's addresses that are ours: node ports and host ports.
    pub tcp_ports: BTreeSet<u16>,
    /// UDP ports of the node's addresses that are ours.
    pub udp_ports: BTreeSet<u16>,
    /// SCTP ports of the node's addresses that are ours.
    pub sctp_ports: BTreeSet<u16>,
    /// Identifiers of the echoes at the node's addresses that are ours.
    pub echo_ids: BTreeSet<u16>,
    /// UDP port of VXLAN.
    pub vxlan_port: Option<u16>,
    /// Addresses that we answer for on the link: ARP, neighbour discovery.
    pub announced: BTreeSet<IpAddr>,
}

/// Frames that a program has seen, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Passed to the kernel.
    pub passed: u64,
    /// Given to a socket.
    pub steered: u64,
    /// Ours, but without a socket.
    pub unbound: u64,
}

/// Loads steering programs. Making a loader reads the kernel's type information, which takes long enough to be
/// done once.
#[derive(Debug)]
pub struct SteeringLoader {
    pod: EbpfLoader<'static>,
    uplink: EbpfLoader<'static>,
}

/// A steering program, for one uplink or for any number of other interfaces.
#[derive(Debug)]
pub struct Steering {
    ebpf: Ebpf,
    program: Program,
    rules: SteeringRules,
    /// Where each interface's sockets are, by its index.
    places: BTreeMap<u32, u32>,
}

/// The object that `build.rs` has made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.bpf.o"));

impl SteeringLoader {
    /// A loader of programs that deal with frames without a socket in one way.
    pub fn new(when_unbound: WhenUnbound) -> SteeringLoader {
        let mut uplink = when_unbound.loader();
        uplink.map_max_entries("interfaces", 1).map_max_entries("sockets", MAX_QUEUES);
        let mut pod = when_unbound.loader();
        // It does not look at these.
        for map in ["node_addresses", "prefixes", "ports", "announced"] {
            pod.map_max_entries(map, 1);
        }
        SteeringLoader { pod, uplink }
    }

    /// Loads a program and maps of its own. It steers nothing before it is attached.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn load(&mut self, program: Program) -> Result<Steering, KernelError> {
        let loader = match program {
            Program::Pod => &mut self.pod,
            Program::Uplink => &mut self.uplink,
        };
        let mut ebpf = loader.load(OBJECT).map_err(bpf("load the steering object"))?;
        xdp(&mut ebpf, program)?.load().map_err(bpf("load the steering program"))?;
        Ok(Steering { ebpf, program, rules: SteeringRules::default(), places: BTreeMap::new() })
    }
}

impl WhenUnbound {
    fn loader(self) -> EbpfLoader<'static> {
        // linux/bpf.h: enum xdp_action
        const XDP_DROP: u32 = 1;
        const XDP_PASS: u32 = 2;
        let action = match self {
            WhenUnbound::Drop => &XDP_DROP,
            WhenUnbound::Pass => &XDP_PASS,
        };
        let mut loader = EbpfLoader::new();
        loader.override_global("when_unbound", action, true);
        loader
    }
}

impl Steering {
    /// Makes the frames of a queue of an interface (its index) go to a socket. When the socket is closed, the kernel
    /// forgets about it.
    ///
    /// # Errors
    /// When the kernel refuses, or there are not as many queues or interfaces.
    pub fn bind(&mut self, interface: u32, queue: u32, socket: impl AsFd) -> Result<(), KernelError> {
        let what = || format!("bind queue {queue}");
        if queue >= MAX_QUEUES {
            let source = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(KernelError::Io { what: what(), source });
        }
        let place = self.place(interface)?;
        let mut sockets: XskMap<_> = map(&mut self.ebpf, "sockets")?;
        sockets.set(place * MAX_QUEUES + queue, socket.as_fd().as_raw_fd(), 0).map_err(bpf(what()))
    }

    /// Forgets an interface, whose sockets are closed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn release(&mut self, interface: u32) -> Result<(), KernelError> {
        if self.places.remove(&interface).is_some() {
            let mut interfaces: HashMap<_, u32, u32> = map(&mut self.ebpf, "interfaces")?;
            interfaces.remove(&interface).map_err(bpf(format!("forget interface {interface}")))?;
        }
        Ok(())
    }

    /// Where the sockets of an interface are.
    fn place(&mut self, interface: u32) -> Result<u32, KernelError> {
        if let Some(place) = self.places.get(&interface) {
            return Ok(*place);
        }
        let taken: BTreeSet<u32> = self.places.values().copied().collect();
        let free =
            (0..).find(|place| !taken.contains(place)).expect("there are fewer interfaces than numbers");
        let mut interfaces: HashMap<_, u32, u32> = map(&mut self.ebpf, "interfaces")?;
        interfaces.insert(interface, free, 0).map_err(bpf(format!("make interface {interface} known")))?;
        self.places.insert(interface, free);
        Ok(free)
    }

    /// Attaches the program to an interface, in place of what an earlier run of ours may have left there.
    ///
    /// Returns the mode in force, which is not `Auto`.
    ///
    /// # Errors
    /// When the interface has somebody else's program, or the kernel refuses.
    pub fn attach(
        &mut self,
        netlink: &Netlink,
        interface: &str,
        mode: XdpMode,
    ) -> Result<XdpMode, KernelError> {
        let native = match mode {
            XdpMode::Auto | XdpMode::Native => self.attach_as(netlink, interface, XdpMode::Native),
            XdpMode::Generic => return self.attach_as(netlink, interface, XdpMode::Generic),
        };
        match native {
            // Which error it is depends on the driver: not supported, too large an MTU, too few queues.
            Err(KernelError::Netlink { .. }) if mode == XdpMode::Auto => {
                self.attach_as(netlink, interface, XdpMode::Generic)
            }
            result => result,
        }
    }

    /// Makes the rules of an uplink's program be `rules`, changing only what differs.
    ///
    /// # Errors
    /// When the kernel refuses a change; the next call goes on from there.
    pub fn sync(&mut self, rules: &SteeringRules) -> Result<(), KernelError> {
        let Steering { ebpf, rules: now, .. } = self;
        // First what is new, so that nothing that stays ours is ever not.
        sync_addresses(ebpf, "node_addresses", &mut now.node_addresses, &rules.node_addresses)?;
        sync_addresses(ebpf, "announced", &mut now.announced, &rules.announced)?;
        let mut prefixes: LpmTrie<_, [u8; 16], u8> = map(ebpf, "prefixes")?;
        for prefix in &rules.prefixes - &now.prefixes {
            prefixes.insert(&key(prefix), 1, 0).map_err(bpf(format!("add prefix {prefix}")))?;
            now.prefixes.insert(prefix);
        }
        for prefix in &now.prefixes - &rules.prefixes {
            prefixes.remove(&key(prefix)).map_err(bpf(format!("remove prefix {prefix}")))?;
            now.prefixes.remove(&prefix);
        }
        let mut ports: Array<_, u64> = map(ebpf, "ports")?;
        sync_ports(&mut ports, 0, &mut now.tcp_ports, &rules.tcp_ports)?;
        sync_ports(&mut ports, PORT_WORDS, &mut now.udp_ports, &rules.udp_ports)?;
        sync_ports(&mut ports, 2 * PORT_WORDS, &mut now.sctp_ports, &rules.sctp_ports)?;
        sync_ports(&mut ports, 3 * PORT_WORDS, &mut now.echo_ids, &rules.echo_ids)?;
        let mut vxlan: Array<_, u32> = map(ebpf, "vxlan_port")?;
        vxlan.set(0, u32::from(rules.vxlan_port.unwrap_or(0)), 0).map_err(bpf("set the VXLAN port"))?;
        now.vxlan_port = rules.vxlan_port;
        Ok(())
    }

    /// Takes the program off an interface, if it is this one that is there. Says whether it was.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach(&mut self, netlink: &Netlink, interface: &str) -> Result<bool, KernelError> {
        let info = xdp(&mut self.ebpf, self.program)?.info().map_err(bpf("look at the program"))?;
        match program_on(netlink, interface)? {
            Some((id, Some(mode))) if id == info.id() => {
                set(netlink, interface, vec![LinkXdp::Fd(-1), LinkXdp::Flags(flag(mode))])?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// What the program has counted.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn outcomes(&self) -> Result<Outcomes, KernelError> {
        let map = self.ebpf.map("outcomes").expect("the object has it");
        let counters = PerCpuArray::<_, u64>::try_from(map).map_err(bpf("open the counters"))?;
        let sum = |index| -> Result<u64, KernelError> {
            let values = counters.get(&index, 0).map_err(bpf("read the counters"))?;
            Ok(values.iter().sum())
        };
        Ok(Outcomes { passed: sum(0)?, steered: sum(1)?, unbound: sum(2)? })
    }

    fn attach_as(
        &mut self,
        netlink: &Netlink,
        interface: &str,
        mode: XdpMode,
    ) -> Result<XdpMode, KernelError> {
        let program = xdp(&mut self.ebpf, self.program)?.fd().map_err(bpf("find the program"))?;
        let program = LinkXdp::Fd(program.as_fd().as_raw_fd());
        match attached(netlink, interface)? {
            Some(there) if there.mode == mode => {
                let there = there.program.fd().map_err(bpf("open the attached program"))?;
                let expected = LinkXdp::ExpectedFd(there.as_fd().as_raw_fd() as u32);
                set(
                    netlink,
                    interface,
                    vec![program, expected, LinkXdp::Flags(flag(mode) | XDP_FLAGS_REPLACE)],
                )?;
            }
            other => {
                // The kernel does not have programs in both modes, so that this takes two steps.
                if let Some(there) = other {
                    set(netlink, interface, vec![LinkXdp::Fd(-1), LinkXdp::Flags(flag(there.mode))])?;
                }
                set(
                    netlink,
                    interface,
                    vec![program, LinkXdp::Flags(flag(mode) | XDP_FLAGS_UPDATE_IF_NOEXIST)],
                )?;
            }
        }
        Ok(mode)
    }
}

/// Takes a steering program of ours, of this run or an earlier one, off an interface. Says whether one was there.
/// To see whose it is takes CAP_SYS_ADMIN.
///
/// # Errors
/// When the interface has somebody else's program, or the kernel refuses.
pub fn detach(netlink: &Netlink, interface: &str) -> Result<bool, KernelError> {
    let Some(there) = attached(netlink, interface)? else { return Ok(false) };
    set(netlink, interface, vec![LinkXdp::Fd(-1), LinkXdp::Flags(flag(there.mode))])?;
    Ok(true)
}

/// How many queues an interface may have, as in the program.
const MAX_QUEUES: u32 = 64;

/// Words of a bitmap of ports. After that of TCP follow those of UDP and SCTP, and that of echoes' identifiers.
const PORT_WORDS: u32 = 1024;

// linux/if_link.h
const XDP_FLAGS_UPDATE_IF_NOEXIST: u32 = 1 << 0;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const XDP_FLAGS_REPLACE: u32 = 1 << 4;

/// A steering program that an interface has.
struct Attached {
    program: ProgramInfo,
    mode: XdpMode,
}

/// Number and mode of the XDP program that an interface has, whosever it is. The mode is `None` if it is in
/// hardware or in more than one.
fn program_on(netlink: &Netlink, interface: &str) -> Result<Option<(u32, Option<XdpMode>)>, KernelError> {
    let message = links::message(netlink, interface)?;
    let xdp = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => Some(xdp),
        _ => None,
    });
    let (mut id, mut mode) = (None, None);
    for attribute in xdp.into_iter().flatten() {
        match attribute {
            LinkXdp::ProgId(number) => id = Some(*number),
            LinkXdp::Attached(XdpAttached::Driver) => mode = Some(XdpMode::Native),
            LinkXdp::Attached(XdpAttached::SocketBuffer) => mode = Some(XdpMode::Generic),
            _ => {}
        }
    }
    Ok(id.map(|id| (id, mode)))
}

/// The steering program of an interface; an error if it has somebody else's. Takes CAP_SYS_ADMIN if there is one.
fn attached(netlink: &Netlink, interface: &str) -> Result<Option<Attached>, KernelError> {
    let Some((id, mode)) = program_on(netlink, interface)? else { return Ok(None) };
    let program = loaded_programs().flatten().find(|program| program.id() == id);
    match (program, mode) {
        (Some(program), Some(mode))
            if program.name_as_str().is_some_and(|name| [POD, UPLINK].contains(&name)) =>
        {
            Ok(Some(Attached { program, mode }))
        }
        _ => {
            let problem = format!("has an XDP program already that is not ours (id {id})");
            Err(KernelError::Unfit { interface: interface.into(), problem })
        }
    }
}

/// Names of the programs, short enough for the kernel to keep them whole.
const POD: &str = "steer_pod";
const UPLINK: &str = "steer_uplink";

fn flag(mode: XdpMode) -> u32 {
    match mode {
        XdpMode::Generic => XDP_FLAGS_SKB_MODE,
        XdpMode::Native | XdpMode::Auto => XDP_FLAGS_DRV_MODE,
    }
}

fn set(netlink: &Netlink, interface: &str, xdp: Vec<LinkXdp>) -> Result<(), KernelError> {
    let index = links::message(netlink, interface)?.header.index;
    let change = LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::Xdp(xdp)).build();
    let what = || format!("change the XDP program of {interface}");
    netlink.ask(what, netlink.handle.link().change(change).execute())
}

fn xdp(ebpf: &mut Ebpf, program: Program) -> Result<&mut Xdp, KernelError> {
    let name = match program {
        Program::Pod => POD,
        Program::Uplink => UPLINK,
    };
    ebpf.program_mut(name).expect("the object has it").try_into().map_err(bpf("find the steering program"))
}

fn map<'a, M>(ebpf: &'a mut Ebpf, name: &str) -> Result<M, KernelError>
where
    M: TryFrom<&'a mut Map, Error = MapError>,
{
    M::try_from(ebpf.map_mut(name).expect("the object has it")).map_err(bpf(format!("open the map {name}")))
}

/// Makes a map of addresses hold these.
fn sync_addresses(
    ebpf: &mut Ebpf,
    name: &str,
    now: &mut BTreeSet<IpAddr>,
    wanted: &BTreeSet<IpAddr>,
) -> Result<(), KernelError> {
    let mut addresses: HashMap<_, [u8; 16], u8> = map(ebpf, name)?;
    for address in wanted - now {
        addresses.insert(mapped(address), 1, 0).map_err(bpf(format!("add {address} to {name}")))?;
        now.insert(address);
    }
    for address in &*now - wanted {
        addresses.remove(&mapped(address)).map_err(bpf(format!("remove {address} from {name}")))?;
        now.remove(&address);
    }
    Ok(())
}

/// Writes those words of a bitmap of ports that change.
fn sync_ports(
    bitmap: &mut Array<&mut MapData, u64>,
    offset: u32,
    now: &mut BTreeSet<u16>,
    ports: &BTreeSet<u16>,
) -> Result<(), KernelError> {
    let words: BTreeSet<u16> = now.symmetric_difference(ports).map(|port| port / 64).collect();
    for word in words {
        let range = word * 64..=word * 64 + 63;
        let bits = ports.range(range).fold(0, |bits, port| bits | 1 << (port % 64));
        bitmap.set(offset + u32::from(word), bits, 0).map_err(bpf("set the ports in use"))?;
    }
    now.clone_from(ports);
    Ok(())
}

/// The key of a prefix: an IPv4 address is in its IPv4-mapped form in every map.
fn key(prefix: IpNet) -> Key<[u8; 16]> {
    let bits = u32::from(prefix.prefix_len()) + if prefix.addr().is_ipv4() { 96 } else { 0 };
    Key::new(bits, mapped(prefix.network()))
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Says what was being done when BPF failed.
fn bpf<E: std::error::Error + Send + Sync + 'static>(
    what: impl Into<String>,
) -> impl FnOnce(E) -> KernelError {
    let what = what.into();
    move |source| KernelError::Bpf { what, source: Box::new(source) }
}
