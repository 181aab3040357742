//! A network of a test's own: an instance on what is another machine to it, and a router on the way to the database that
//! can stop passing anything on. Made of the kernel's network namespaces; needs root and Debian's `iproute2`.

use super::{Server, run, shell};
use std::process::Command;

/// All addresses that such networks have: nobody's, for they are set aside for the measuring of networks (RFC 2544).
pub(super) const ADDRESSES: &str = "198.18.0.0/15";

/// The cables between this machine, the instance's and the router:
///
/// ```text
/// clients .1 ───────────────── .2 instance .5 ─── .6 router .9 ─── .10 database
/// ```
///
/// Clients and the database are on this machine. Goes when it is dropped.
pub(crate) struct Network {
    /// What all its addresses begin with, the dot included.
    prefix: String,
    instance: String,
    router: String,
}

impl Network {
    /// Whether this machine lets us make one.
    pub(crate) fn is_possible() -> bool {
        let namespace = format!("oncelog-t-{:x}", fastrand::u16(..));
        let does = |what| {
            let output = Command::new("ip").args(["netns", what, &namespace]).output();
            output.is_ok_and(|output| output.status.success())
        };
        does("add") && does("delete")
    }

    pub(crate) fn new() -> Self {
        // Long enough that two test runs on one machine do not meet.
        let number = fastrand::u16(..);
        let network = Self {
            prefix: format!("198.{}.{}.", 18 + number % 2, number >> 8),
            instance: format!("oncelog-i-{number:x}"),
            router: format!("oncelog-r-{number:x}"),
        };
        let Self {
            prefix,
            instance,
            router,
        } = &network;
        // The names of devices may have 15 characters.
        let (clients, database) = (format!("olc-{number:x}"), format!("old-{number:x}"));
        for namespace in [instance, router] {
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        ip(&format!(
            "link add {clients} type veth peer name clients netns {instance}"
        ));
        ip(&format!(
            "link add {database} type veth peer name database netns {router}"
        ));
        ip(&format!(
            "-n {instance} link add router type veth peer name instance netns {router}"
        ));
        for (of, device, place) in [
            ("", clients.as_str(), 1),
            (&format!("-n {instance}"), "clients", 2),
            (&format!("-n {instance}"), "router", 5),
            (&format!("-n {router}"), "instance", 6),
            (&format!("-n {router}"), "database", 9),
            ("", &database, 10),
        ] {
            ip(&format!("{of} address add {prefix}{place}/30 dev {device}"));
            ip(&format!("{of} link set {device} up"));
        }
        ip(&format!("-n {instance} route add {prefix}8/30 via {prefix}6"));
        ip(&format!("route add {prefix}4/30 via {prefix}9"));
        network.mend();
        network
    }

    /// The address at which the instance finds the database's server.
    pub(crate) fn database(&self) -> String {
        format!("{}10", self.prefix)
    }

    /// Starts an instance on the other machine.
    #[track_caller]
    pub(crate) fn instance(&self, settings: &[(&str, &str)]) -> Server {
        let host = format!("{}2", self.prefix);
        let mut all = vec![("HOST", host.as_str()), ("ALLOW_ANONYMOUS", "true")];
        all.extend(settings);
        Server::start_within(&self.instance, &all)
    }

    /// The router swallows every packet from now on, of either direction, and tells nobody. Clients still reach the
    /// instance.
    pub(crate) fn cut(&self) {
        self.forward(false);
    }

    /// It passes packets on.
    pub(crate) fn mend(&self) {
        self.forward(true);
    }

    fn forward(&self, is_on: bool) {
        let set = format!("echo {} > /proc/sys/net/ipv4/ip_forward", u8::from(is_on));
        shell(Command::new("ip").args(["netns", "exec", &self.router, "sh", "-c", &set]));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The cables go with what they are plugged into.
        for namespace in [&self.instance, &self.router] {
            let _ = run(Command::new("ip").args(["netns", "delete", namespace]));
        }
    }
}

fn ip(words: &str) {
    shell(Command::new("ip").args(words.split_whitespace()));
}
