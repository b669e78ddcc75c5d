//! Finding a frontend and choosing a backend, by the number of Services.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wirelane_bench::measure::Random;
use wirelane_dataplane::batch::Key;
use wirelane_dataplane::tables::build::Builder;
use wirelane_dataplane::tables::neighbours::Neighbours;
use wirelane_dataplane::tables::objects::{Backend, Frontend, FrontendKind, Object, Service, ServicePort};
use wirelane_dataplane::tables::services::{Found, Origin, Services};
use wirelane_dataplane::wire::{Addr, proto};

const BACKENDS: u32 = 10;
const PACKETS: usize = 1 << 14;

fn frontend(service: u32) -> Addr {
    let [_, a, b, c] = service.to_be_bytes();
    Addr::v4([10, 96 + a, b, c])
}

fn table(services: u32) -> Services {
    let service = |service: u32| {
        let backend = |n: u32| {
            let [_, a, b, c] = (service * BACKENDS + n).to_be_bytes();
            let address = Addr::v4([10, 128 + a, b, c]);
            Backend::new(address, 8080)
        };
        let port = ServicePort {
            name: "http".into(),
            proto: proto::TCP,
            frontends: vec![Frontend::new(FrontendKind::ClusterIp, Some(frontend(service)), 80)],
            backends: (0..BACKENDS).map(backend).collect(),
        };
        Object::Service(Service { name: format!("bench/{service}"), ports: vec![port], ..Service::default() })
    };
    let mut builder = Builder::default();
    builder.change((0..services).map(service).collect(), &[]);
    builder.build(&Neighbours::default()).services.clone()
}

fn services(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("services");
    group.throughput(Throughput::Elements(PACKETS as u64)).sample_size(20);
    for count in [10, 1000, 100_000] {
        let table = table(count);
        let mut random = Random::new(1);
        let asked: Vec<(Key, u32)> = (0..PACKETS)
            .map(|_| {
                let dst = frontend(random.below(u64::from(count)) as u32);
                let key = Key { dst, dport: 80, proto: proto::TCP, ..Key::default() };
                (key, random.bits() as u32)
            })
            .collect();
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                for (key, random) in &asked {
                    let Found::Port(port, kind) = table.find(key, false) else { panic!("no Service") };
                    let selection = port.select(kind, Origin::Pod, &key.src).expect("a backend");
                    black_box(selection.backends.choose(*random));
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, services);
criterion_main!(benches);
