//! Credentials: those of a kubeconfig, or those that Kubernetes gives to every pod.
//!
//! Tokens and certificate authorities in files are read again by `kube` as they are replaced, and programs that give
//! tokens are asked again before these expire.

use std::time::Duration;

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::{Access, ApiError, Server, chain};

/// A client of the API server.
pub(super) async fn client(access: &Access, answer_within: Duration) -> Result<Client, ApiError> {
    let refused = |error: &dyn std::error::Error| ApiError::Access(chain(error));
    let mut config = match &access.kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path).map_err(|error| refused(&error))?;
            let options = KubeConfigOptions::default();
            let loaded = Config::from_custom_kubeconfig(kubeconfig, &options).await;
            loaded.map_err(|error| refused(&error))?
        }
        None => Config::incluster().map_err(|error| refused(&error))?,
    };
    if let Some(Server(server)) = &access.server {
        config.cluster_url.clone_from(server);
    }
    config.connect_timeout = Some(answer_within);
    config.write_timeout = Some(answer_within);
    // Whoever asks knows better when to ask again.
    config.default_retry = false;
    Client::try_from(config).map_err(|error| refused(&error))
}
