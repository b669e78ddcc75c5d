//! Compiles the steering program, `xdp/steer.bpf.c`, into the object that `kernel::steering` embeds.

use std::env;
use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "xdp/steer.bpf.c";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=CLANG");
    if env::var_os("CARGO_FEATURE_AF_XDP").is_none() {
        return;
    }
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let object = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("steer.bpf.o");
    // -g: the maps are described by BTF.
    let arguments =
        ["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-c", SOURCE, "-o"];
    match Command::new(&clang).args(arguments).arg(&object).status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{clang} could not compile {SOURCE}: {status}"),
        Err(error) => panic!(
            "{clang} cannot be run ({error}), and the steering program {SOURCE} needs it. Install clang, name it \
             in CLANG, or build with --no-default-features: without AF_XDP the packet path is pure Rust"
        ),
    }
}
