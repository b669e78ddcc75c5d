//! The gRPC contract between Wirelane's processes, package `wirelane.v1`.
//!
//! What is generated here stops at the rim of each process: messages are validated into domain types
//! as they come in. The [`connect`] helper opens a channel over a unix socket.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Error, Uri};

/// Messages and services of `wirelane.v1`, as generated.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("wirelane.v1");
}

/// The largest message either side accepts: a transaction with a whole large cluster in it.
pub const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// Opens a channel to the daemon that listens on the unix socket at `path`.
///
/// # Errors
/// When nothing listens there, or this process may not connect.
pub async fn connect(path: &Path) -> Result<Channel, Error> {
    let path: PathBuf = path.to_owned();
    // The authority is required by HTTP/2 and means nothing on a unix socket.
    Endpoint::from_static("http://wirelane.local")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
        }))
        .await
}
