//! Stand-in until the server lands: it has the entry that `oncelog serve` calls, and says that it is not there.

use crate::config::Config;

/// Why the server did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServeError(String);

/// Always an error: this build has no server.
pub async fn serve(
    _config: Config,
    _listener: std::net::TcpListener,
    _shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    Err(ServeError("this build has no server".to_owned()))
}
