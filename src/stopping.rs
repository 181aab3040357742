//! How the parts of the program are told to stop: by flags that are set once. A leaf.

use tokio::sync::watch;

/// Waits until a flag is set, or nobody is left to set it.
pub(crate) async fn told(flag: &mut watch::Receiver<bool>) {
    // The only error is that the sender is gone.
    let _ = flag.wait_for(|told| *told).await;
}
