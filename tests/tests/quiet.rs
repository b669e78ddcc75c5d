//! The path asks the kernel for nothing: no lock that is waited for, no memory, no clock.
//!
//! The path runs in a process that the kernel kills at its first system call but `exit` (seccomp(2)), over packets
//! that take every stage.
#![allow(unsafe_code)]

use wirelane_dataplane::batch::{BATCH, Batch, PortId};
use wirelane_dataplane::clock::Now;
use wirelane_dataplane::engine::Engine;
use wirelane_dataplane::io::frame::FramePool;
use wirelane_dataplane::tables::UPLINK_PORT;
use wirelane_dataplane::verdict::{DropReason, Verdict};
use wirelane_tests::cluster::{self, API, GATEWAY_MAC, UPLINK_MAC, VNI, WEB, neighbour_mac, pod_mac};
use wirelane_tests::node::Control;
use wirelane_tests::packet::*;

const BATCHES: u32 = 2000;
/// Where the source port is in a TCP packet over IPv4.
const SOURCE_PORT: std::ops::Range<usize> = 34..36;

/// A worker's part of the path, and the frames that it is fed with.
struct Feeder {
    engine: Engine,
    pool: FramePool,
    batch: Batch,
    /// Frames and where they come in; of the first, each batch has another source port.
    frames: Vec<(PortId, Vec<u8>)>,
}

impl Feeder {
    /// One batch. How many of its packets went on, and how many were answered.
    fn batch(&mut self, n: u32) -> (u32, u32) {
        for (port, bytes) in self.frames.iter().cycle().take(BATCH) {
            let mut frame = self.pool.alloc().expect("as many frames as a batch has");
            assert!(frame.resize(bytes.len()));
            frame.bytes_mut().copy_from_slice(bytes);
            if self.batch.is_empty() {
                frame.bytes_mut()[SOURCE_PORT].copy_from_slice(&(10_000 + n as u16).to_be_bytes());
            }
            self.batch.push(frame, *port);
        }
        let now = Now { tick: 1_000_000 + n };
        self.engine.run(&mut self.batch, now);
        let count = |verdict| self.batch.meta.iter().filter(|meta| meta.verdict == verdict).count() as u32;
        let went = (count(Verdict::Forward), count(Verdict::Reply));
        self.batch.frames.drain(..).for_each(|frame| self.pool.free(frame));
        self.batch.meta.clear();
        self.engine.quiescent();
        self.engine.housekeeping(now, 64);
        went
    }
}

/// From here on, all but `exit`. (Not the kernel's strict mode, which forbids the time-stamp counter as well.)
fn forbid_system_calls() -> bool {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    let mut steps = [
        // The number of the call is the first word of `seccomp_data`.
        step(LOAD, 0, 0),
        step(IF_EQUAL, 1, libc::SYS_exit as u32),
        step(RETURN, 0, libc::SECCOMP_RET_KILL_PROCESS),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the program is copied before the call returns.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    }
}

#[test]
fn the_path_makes_no_system_call() {
    let mut control = Control::new(1, 16_384);
    control.describe(&cluster::standard());
    let from_api = |packet: Packet| packet.from("10.244.1.11:4000").link(pod_mac(API), GATEWAY_MAC);
    let tunnelled = udp().from("10.244.2.10:7000").to("10.244.1.10:8080").payload(b"from another node");
    let frames = vec![
        // A new flow to a Service, an established one, one out of the tunnel, and its replies.
        (API, from_api(tcp().syn().to("10.96.0.20:80")).bytes()),
        (API, from_api(tcp().to("10.244.2.10:80")).bytes()),
        (UPLINK_PORT, {
            let inner = tunnelled
                .clone()
                .link(cluster::vtep_mac("192.0.2.2"), cluster::vtep_mac("192.0.2.1"))
                .bytes();
            let outer = udp().from("192.0.2.2:50000").to("192.0.2.1:4789");
            outer.link(neighbour_mac(2), UPLINK_MAC).vxlan(VNI, inner).bytes()
        }),
        (WEB, udp().from("10.244.1.10:8080").to("10.244.2.10:7000").link(pod_mac(WEB), GATEWAY_MAC).bytes()),
        // IPv6, a refusal with its answer, and what is dropped.
        (
            API,
            tcp()
                .from("[fd00:244:1::11]:4001")
                .to("[fd00:244:2::10]:80")
                .link(pod_mac(API), GATEWAY_MAC)
                .bytes(),
        ),
        (API, from_api(tcp().syn().to("10.96.0.13:80")).bytes()),
        (API, vec![0; 3]),
    ];
    let mut feeder = Feeder {
        engine: Engine::new(control.shared.clone(), 0),
        pool: FramePool::in_memory(2 * BATCH as u32, 4096).unwrap(),
        batch: Batch::default(),
        frames,
    };
    // Every page is there, and everything that is resolved once is.
    let (forwarded, answered) = feeder.batch(0);
    assert!(forwarded >= 36 && answered >= 9, "{forwarded} forwarded, {answered} answered");
    // Answers are limited by the second, so how many there are is not compared.
    let expected = BATCHES * forwarded;

    // SAFETY: the child does nothing but run the path, and ends; nothing that another thread held when it was
    // made is needed for that.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        let quiet = forbid_system_calls();
        let forwarded: u32 = if quiet { (1..=BATCHES).map(|n| feeder.batch(n).0).sum() } else { 0 };
        let code = if !quiet { 2 } else { i32::from(forwarded != expected) };
        // SAFETY: ends the process, which has one thread.
        unsafe { libc::syscall(libc::SYS_exit, code) };
    }
    let mut status = 0;
    // SAFETY: a place for the status.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(!libc::WIFSIGNALED(status), "killed by signal {} for a system call", libc::WTERMSIG(status));
    assert_eq!(libc::WEXITSTATUS(status), 0, "1: other packets went on than before; 2: no seccomp");
    assert_eq!(control.shared.stats[0].dropped(DropReason::FlowTableFull), 0);
}
