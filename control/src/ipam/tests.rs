use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use proptest::prelude::*;

use super::*;

/// What an attachment has remembered beside its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Note {
    pod: String,
}

fn owner(container: impl ToString) -> Owner {
    Owner { container: container.to_string(), interface: "eth0".to_owned() }
}

fn note() -> Note {
    Note { pod: "default/web".to_owned() }
}

fn ranges(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

const HOLD: u64 = 1000;

fn book() -> Book<Note> {
    Book::new(Vec::new(), BTreeMap::new(), Duration::from_millis(HOLD))
}

#[test]
fn one_of_each_family_and_none_that_means_something_else() {
    let mut book = book();
    let given = book.give(&owner(1), &ranges(&["10.244.1.0/24", "fd00:244:1::/64"]), &[], note(), 0).unwrap();
    assert_eq!(given.addresses, addresses(&["10.244.1.2", "fd00:244:1::2"]));
    // Network, gateway and broadcast are left out: one is left of four.
    let small = ranges(&["10.0.0.4/30"]);
    assert_eq!(book.give(&owner(2), &small, &[], note(), 0).unwrap().addresses, addresses(&["10.0.0.6"]));
    let none = book.give(&owner(3), &small, &[], note(), 0).unwrap_err().to_string();
    assert_eq!(none, "no address is left in 10.0.0.4/30: 1 are in use, and 0 wait to be given again");
    let tiny = book.give(&owner(3), &ranges(&["10.0.0.4/31"]), &[], note(), 0).unwrap_err();
    assert!(matches!(tiny, LeaseError::Exhausted { .. }));
    let nowhere = book.give(&owner(3), &[], &[], note(), 0).unwrap_err();
    assert_eq!(nowhere.to_string(), "this node has no podCIDRs to take an address from");
}

#[test]
fn an_address_rests() {
    let (mut book, small) = (book(), ranges(&["10.0.0.0/30"]));
    let give = |book: &mut Book<Note>, now| book.give(&owner(1), &small, &[], note(), now);
    give(&mut book, 0).unwrap();
    book.release(&owner(1), 5000);
    let early = give(&mut book, 5999).unwrap_err().to_string();
    assert_eq!(early, "no address is left in 10.0.0.0/30: 0 are in use, and 1 wait to be given again");
    give(&mut book, 6000).unwrap();
    // The clock is set back: it rests from then on.
    book.release(&owner(1), 6000);
    give(&mut book, 100).unwrap_err();
    give(&mut book, 1099).unwrap_err();
    give(&mut book, 1100).unwrap();
    // Nobody has heard of it: it need not rest.
    book.forget(&owner(1));
    give(&mut book, 1100).unwrap();
}

#[test]
fn a_pod_keeps_the_address_that_it_is_said_to_have() {
    let (mut book, range) = (book(), ranges(&["10.0.0.0/29"]));
    let wanted = addresses(&["10.0.0.5"]);
    let give = |book: &mut Book<Note>, of: &Owner, preferred: &[IpAddr]| {
        book.give(of, &range, preferred, note(), 0).unwrap().addresses
    };
    assert_eq!(give(&mut book, &owner(1), &wanted), wanted);
    book.release(&owner(1), 0);
    assert_eq!(give(&mut book, &owner(2), &wanted), wanted);
    // Neither another's, nor what no pod gets, nor one from elsewhere.
    for preferred in [&wanted, &addresses(&["10.0.0.1"]), &addresses(&["192.0.2.7"])] {
        let given = give(&mut book, &owner(3), preferred);
        assert_ne!(&given, preferred);
        book.forget(&owner(3));
    }
    let taken = book.claim(&owner(4), wanted.clone(), note()).unwrap_err().to_string();
    assert_eq!(taken, "10.0.0.5 is the address of container 2, interface eth0");
    book.claim(&owner(2), wanted, note()).unwrap();
}

#[test]
fn other_ranges_count_from_the_next_address_on() {
    let mut book = book();
    let old = book.give(&owner(1), &ranges(&["10.0.0.0/24"]), &[], note(), 0).unwrap();
    let new = book.give(&owner(2), &ranges(&["10.0.9.0/24"]), &[], note(), 0).unwrap();
    assert_eq!(new.addresses, addresses(&["10.0.9.2"]));
    assert_eq!(book.lease(&owner(1)), Some(old));
}

#[derive(Clone, Debug)]
enum Step {
    Give { container: u8, range: usize, preferred: Option<u8> },
    Release(u8),
    Forget(u8),
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..24u8, 0..RANGES.len(), proptest::option::of(0..20u8)).prop_map(|(container, range, preferred)| {
            Step::Give { container, range, preferred }
        }),
        3 => (0..24u8).prop_map(Step::Release),
        1 => (0..24u8).prop_map(Step::Forget),
        2 => (0..800u16).prop_map(Step::Wait),
    ]
}

const RANGES: [&[&str]; 4] = [
    &["10.0.0.0/28"],
    &["10.0.0.0/28", "fd00::/125"],
    &["fd00::/125"],
    // Other ranges, one of them within the old one.
    &["10.0.0.8/29", "10.0.1.0/30"],
];

proptest! {
    /// Against lists that are searched from end to end.
    #[test]
    fn as_a_naive_model_has_it(steps in proptest::collection::vec(step(), 1..200)) {
        let mut book = book();
        let mut leased: BTreeMap<u8, Vec<IpAddr>> = BTreeMap::new();
        let mut rests: Vec<(IpAddr, u64)> = Vec::new();
        let mut now = 1_000_000;
        for step in steps {
            match step {
                Step::Wait(milliseconds) => now += u64::from(milliseconds),
                Step::Release(container) => {
                    book.release(&owner(container), now);
                    for address in leased.remove(&container).into_iter().flatten() {
                        rests.push((address, now));
                    }
                }
                Step::Forget(container) => {
                    book.forget(&owner(container));
                    leased.remove(&container);
                }
                Step::Give { container, range, preferred } => {
                    if leased.contains_key(&container) {
                        continue;
                    }
                    let range = ranges(RANGES[range]);
                    let preferred: Vec<IpAddr> =
                        preferred.map(|last| IpAddr::from([10, 0, 0, last])).into_iter().collect();
                    let owned: BTreeSet<IpAddr> = leased.values().flatten().copied().collect();
                    let resting = rests.clone();
                    let rests_now = |address: &IpAddr| {
                        resting.iter().any(|(other, since)| other == address && now - since < HOLD)
                    };
                    let all = |range: &IpNet| -> Vec<IpAddr> {
                        let all: Vec<IpAddr> = range.hosts().collect();
                        // `hosts` leaves out what IPv4 has of network and broadcast.
                        let skipped = if range.addr().is_ipv4() { 1 } else { 2 };
                        all.into_iter().skip(skipped).collect()
                    };
                    let mut is_possible = true;
                    for is_ipv4 in [true, false] {
                        let all: Vec<IpAddr> =
                            range.iter().filter(|range| range.addr().is_ipv4() == is_ipv4).flat_map(all).collect();
                        let is_of_family = range.iter().any(|range| range.addr().is_ipv4() == is_ipv4);
                        let wished = all.iter().any(|it| preferred.contains(it) && !owned.contains(it));
                        let free = all.iter().any(|it| !owned.contains(it) && !rests_now(it));
                        is_possible &= !is_of_family || wished || free;
                    }
                    let given = book.give(&owner(container), &range, &preferred, note(), now);
                    prop_assert_eq!(given.is_ok(), is_possible, "{:?}", given);
                    let Ok(given) = given else { continue };
                    for address in &given.addresses {
                        let possible: Vec<IpAddr> = range.iter().flat_map(all).collect();
                        prop_assert!(possible.contains(address) && !owned.contains(address));
                        prop_assert!(preferred.contains(address) || !rests_now(address));
                        // A wish comes true if it can.
                        for wish in preferred.iter().filter(|wish| possible.contains(wish) && !owned.contains(wish)) {
                            prop_assert!(!address.is_ipv4() || address == wish);
                        }
                        rests.retain(|(other, _)| other != address);
                    }
                    let families: BTreeSet<bool> = given.addresses.iter().map(IpAddr::is_ipv4).collect();
                    prop_assert_eq!(families.len(), given.addresses.len());
                    leased.insert(container, given.addresses);
                }
            }
            let known: BTreeMap<Owner, Vec<IpAddr>> =
                leased.iter().map(|(container, addresses)| (owner(container), addresses.clone())).collect();
            prop_assert_eq!(book.leases().map(|lease| (lease.owner, lease.addresses)).collect::<BTreeMap<_, _>>(), known);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_at_once_are_all_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let hold = Duration::from_secs(3600);
    let ipam = Ipam::<Note>::open(folder.path(), hold).unwrap();
    let range = ranges(&["10.0.0.0/24", "fd00::/64"]);
    let gives = (0..100).map(|container| {
        let (ipam, range) = (ipam.clone(), range.clone());
        tokio::spawn(async move { ipam.give(&owner(container), &range, &[], note()).await.unwrap() })
    });
    let gives: Vec<_> = gives.collect();
    let mut given = Vec::new();
    for give in gives {
        given.push(give.await.unwrap());
    }
    given.sort_by(|a, b| a.owner.cmp(&b.owner));
    ipam.release(&owner(7)).await.unwrap();
    let again = Ipam::<Note>::open(folder.path(), hold).unwrap();
    let released = given.iter().position(|lease| lease.owner == owner(7)).unwrap();
    let released = given.remove(released);
    assert_eq!(again.leases(), given);
    // It remembers what rests, too.
    for container in 100..253 {
        again.give(&owner(container), &range, &[], note()).await.unwrap();
    }
    let error = again.give(&owner(253), &range, &[], note()).await.unwrap_err().to_string();
    assert_eq!(error, "no address is left in 10.0.0.0/24: 252 are in use, and 1 wait to be given again");
    again.give(&owner(253), &range, &released.addresses, note()).await.unwrap();
}

#[test]
fn a_memory_that_cannot_be_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for text in ["", "{\"version\": 1, \"leases\": [{", "{\"version\": 2, \"leases\": [], \"held\": {}}"] {
        fs::write(folder.path().join("attachments.json"), text).unwrap();
        assert!(Ipam::<Note>::open(folder.path(), Duration::ZERO).is_err(), "{text}");
    }
}

/// Set in the process that is to be killed: where it remembers.
const CHILD: &str = "WIRELANE_TEST_IPAM_CHILD";

/// Gives and releases without end, and says what has been done. Only as the child of the test below.
#[test]
fn child_that_gives_until_it_is_killed() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let ipam = Ipam::<Note>::open(Path::new(&folder), Duration::from_secs(3600)).unwrap();
        let range = ranges(&["10.0.0.0/16", "fd00::/64"]);
        let tasks = (0..4).map(|task| {
            let (ipam, range) = (ipam.clone(), range.clone());
            tokio::spawn(async move {
                for turn in 0.. {
                    let owner = owner(format!("{}-{task}-{turn}", std::process::id()));
                    let lease = ipam.give(&owner, &range, &[], note()).await.unwrap();
                    println!("\ngiven {} {} {}", owner.container, lease.addresses[0], lease.addresses[1]);
                    if turn % 2 == 0 {
                        println!("\nreleasing {}", owner.container);
                        ipam.release(&owner).await.unwrap();
                        println!("\nreleased {}", owner.container);
                    }
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    });
}

#[test]
fn nothing_said_is_forgotten_when_it_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut given: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    // Killed after so many words, over one memory.
    for words in [3, 11, 24, 57] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ipam::tests::child_that_gives_until_it_is_killed", "--nocapture"])
            .env(CHILD, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut said: Vec<String> = lines
            .by_ref()
            .filter(|line| line.contains("given") || line.contains("releas"))
            .take(words)
            .collect();
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had said and nobody had read yet counts, too; the last line may be half of one.
        said.extend(lines.filter(|line| line.split(' ').count() == 4 || line.starts_with("releas")));
        let mut leaving = BTreeSet::new();
        for line in said {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["given", container, ipv4, ipv6] => {
                    let (Ok(ipv4), Ok(ipv6)) = (ipv4.parse(), ipv6.parse()) else { continue };
                    let before = given.insert(container.to_owned(), vec![ipv4, ipv6]);
                    assert_eq!(before, None);
                }
                ["releasing", container] => _ = leaving.insert(container.to_owned()),
                ["released", container] => _ = given.remove(container),
                _ => {}
            }
        }
        let ipam = Ipam::<Note>::open(folder.path(), Duration::from_secs(3600)).unwrap();
        for (container, addresses) in &given {
            match ipam.lease(&owner(container)) {
                Some(lease) => assert_eq!(&lease.addresses, addresses),
                None => assert!(leaving.contains(container), "{container} is forgotten"),
            }
        }
        given.retain(|container, _| ipam.lease(&owner(container)).is_some());
        let all: Vec<_> = ipam.leases().into_iter().flat_map(|lease| lease.addresses).collect();
        assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len(), "an address was given twice");
    }
}
