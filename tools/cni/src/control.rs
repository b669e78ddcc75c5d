//! The way to the control process, which may be away for a moment.

use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use tonic::{Code, Response, Status, transport::Channel};
use wirelane_proto::v1::{
    self, CniAddRequest, CniAddResponse, CniCheckRequest, CniDelRequest, CniGcRequest, CniOwner,
    CniPortMapping, CniStatusRequest, control_client::ControlClient,
};

use crate::{
    call::Call,
    config::Config,
    result::{Error, GATEWAYS},
};

/// How long one answer may take. A hundred pods that come at once wait for each other's links, which the kernel makes one by one;
/// kubelets wait for two minutes, for this and the tries before it.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);
/// Between two tries, at first and at most.
const WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// Attaches the container.
pub fn add(call: &Call, config: &Config) -> Result<CniAddResponse, Error> {
    let runtime = &config.runtime_config;
    let port_mappings = runtime.port_mappings.iter().flatten().map(|mapping| CniPortMapping {
        host_port: mapping.host_port,
        container_port: mapping.container_port,
        protocol: mapping.protocol.clone(),
        host_ip: mapping.host_ip.clone(),
    });
    let request = CniAddRequest {
        owner: Some(call.owner.clone()),
        network: config.name.clone(),
        netns: call.netns.clone(),
        pod: call.pod.clone(),
        bandwidth: runtime.bandwidth.as_ref().map(|limits| v1::Bandwidth {
            ingress_rate: limits.ingress_rate,
            ingress_burst: limits.ingress_burst,
            egress_rate: limits.egress_rate,
            egress_burst: limits.egress_burst,
        }),
        port_mappings: port_mappings.collect(),
    };
    ask(config, async |client| client.cni_add(request.clone()).await)
}

/// Detaches it.
pub fn del(call: &Call, config: &Config) -> Result<(), Error> {
    let request = CniDelRequest { owner: Some(call.owner.clone()), pod: call.pod.clone() };
    ask(config, async |client| client.cni_del(request.clone()).await).map(drop)
}

/// Looks at it.
pub fn check(call: &Call, config: &Config) -> Result<(), Error> {
    let ours = config.previous_gateways().into_iter().filter(|gateway| GATEWAYS.contains(gateway));
    let addresses = config.previous_addresses(&call.owner.interface, &call.netns)?;
    let request = CniCheckRequest {
        owner: Some(call.owner.clone()),
        netns: call.netns.clone(),
        addresses: addresses.into_iter().map(bytes).collect(),
        gateways: ours.map(bytes).collect(),
    };
    ask(config, async |client| client.cni_check(request.clone()).await).map(drop)
}

/// Detaches what no runtime knows.
pub fn gc(config: &Config) -> Result<(), Error> {
    let valid = config.valid_attachments.iter().flatten();
    let owner = |of: &crate::config::Attachment| CniOwner {
        container: of.container.clone(),
        interface: of.interface.clone(),
    };
    let request = CniGcRequest { network: config.name.clone(), valid: valid.map(owner).collect() };
    let done = ask(config, async |client| client.cni_gc(request.clone()).await)?;
    if done.errors.is_empty() { Ok(()) } else { Err(Error::failed(&done.errors.join("; "))) }
}

/// Asks whether ADD has any chance.
pub fn status(config: &Config) -> Result<(), Error> {
    // That a daemon is away is an answer, too: it is not waited for.
    let config = Config { patience_seconds: 0, ..config.clone() };
    match ask(&config, async |client| client.cni_status(CniStatusRequest {}).await) {
        Ok(status) if status.code == 0 => Ok(()),
        Ok(status) => Err(Error::unready(status.code, &status.reason)),
        // The dataplane may be there all the same.
        Err(error) => Err(Error::unready(50, error.details())),
    }
}

/// Asks the control process until it has an answer, or patience ends.
fn ask<T>(
    config: &Config,
    call: impl AsyncFn(&mut ControlClient<Channel>) -> Result<Response<T>, Status>,
) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::io("starting", &error))?;
    runtime.block_on(async {
        let end = Instant::now() + Duration::from_secs(config.patience_seconds.into());
        let mut wait = WAIT.0;
        loop {
            let status = match once(&config.socket, &call).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            // A connection that breaks is said to be any of the latter three.
            let is_passing =
                matches!(status.code(), Code::Aborted | Code::Unavailable | Code::Cancelled | Code::Unknown);
            if !is_passing {
                return Err(Error::of(&status));
            }
            if Instant::now() + wait >= end {
                return Err(Error::again(status.message()));
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(WAIT.1);
        }
    })
}

async fn once<T>(
    socket: &Path,
    call: &impl AsyncFn(&mut ControlClient<Channel>) -> Result<Response<T>, Status>,
) -> Result<T, Status> {
    let away =
        |error| Status::unavailable(format!("wirelane-control is away: {}: {error}", socket.display()));
    let asked = async {
        let channel = wirelane_proto::connect(socket).await.map_err(away)?;
        Ok(call(&mut ControlClient::new(channel)).await?.into_inner())
    };
    let silent = |_| Err(Status::unavailable("wirelane-control does not answer"));
    tokio::time::timeout(ANSWER_WITHIN, asked).await.unwrap_or_else(silent)
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
