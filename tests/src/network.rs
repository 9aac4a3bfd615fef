//! A network of its own: a namespace of the kernel's, with one cable to this one, which can be pulled and made thin.
//!
//! It takes root, and `ip`, `tc` and `nsenter`. What is pulled is silent: no connection is told.

use std::io;
use std::net::Ipv4Addr;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use crate::broker::succeed;

/// A namespace, gone when it is dropped.
#[derive(Debug)]
pub struct Network {
    name: String,
    /// The cable's end on this side; the other has an `x` behind it.
    cable: String,
    /// Which of the networks of four addresses it has.
    number: (u8, u8),
}

impl Network {
    /// Makes one.
    ///
    /// # Errors
    /// Where this is not allowed, or programs for it are missing.
    pub fn make() -> io::Result<Network> {
        static COUNT: AtomicU8 = AtomicU8::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = std::process::id();
        // Names of interfaces have at most 15 letters.
        let name = format!("andon{id}-{count}");
        let network = Network {
            cable: format!("an{id}{count}"),
            number: (id.to_le_bytes()[0], 4 * (count % 64)),
            name,
        };
        let (cable, inner) = (network.cable.as_str(), format!("{}x", network.cable));
        network.ip(&["netns", "add", &network.name])?;
        let peer = [
            "type",
            "veth",
            "peer",
            "name",
            &inner,
            "netns",
            &network.name,
        ];
        network.ip(&[&["link", "add", cable][..], &peer].concat())?;
        network.ip(&[
            "addr",
            "add",
            &format!("{}/30", network.outside()),
            "dev",
            cable,
        ])?;
        network.ip(&["link", "set", cable, "up"])?;
        let (_, third) = network.number;
        let inside = format!("10.213.{}.{}/30", network.number.0, third + 2);
        let within = |arguments: &[&str]| {
            let all = [&["-n", &network.name][..], arguments].concat();
            network.ip(&all)
        };
        within(&["addr", "add", &inside, "dev", &inner])?;
        within(&["link", "set", &inner, "up"])?;
        within(&["link", "set", "lo", "up"])?;
        // Whether it can be made thin shows before it is relied on.
        network.thin(1000)?;
        network.whole()?;
        Ok(network)
    }

    /// The address on this side, which those within reach.
    #[must_use]
    pub fn outside(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.number.0, self.number.1 + 1)
    }

    /// What is put before a program to have it run within.
    #[must_use]
    pub fn inside(&self) -> Vec<String> {
        vec![
            "nsenter".to_owned(),
            format!("--net=/run/netns/{}", self.name),
        ]
    }

    /// Pulls the cable, or plugs it in.
    ///
    /// # Errors
    /// When the kernel does not let us.
    pub fn plug(&self, is: bool) -> io::Result<()> {
        let state = if is { "up" } else { "down" };
        self.ip(&["link", "set", &self.cable, state]).map(drop)
    }

    /// Lets so many kilobits a second pass in this direction, with little patience for what has to wait: the rest is late, or lost.
    ///
    /// # Errors
    /// When the kernel does not let us.
    pub fn thin(&self, kilobits: u32) -> io::Result<()> {
        let rate = format!("{kilobits}kbit");
        let mut tc = Command::new("tc");
        tc.args(["qdisc", "replace", "dev", &self.cable, "root", "tbf"]);
        succeed(tc.args(["rate", &rate, "burst", "1600", "limit", "4000"])).map(drop)
    }

    /// Lets everything pass again.
    ///
    /// # Errors
    /// When the kernel does not let us.
    pub fn whole(&self) -> io::Result<()> {
        let mut tc = Command::new("tc");
        succeed(tc.args(["qdisc", "del", "dev", &self.cable, "root"])).map(drop)
    }

    fn ip(&self, arguments: &[&str]) -> io::Result<Output> {
        succeed(Command::new("ip").args(arguments))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // With the namespace goes the cable.
        let mut command = Command::new("ip");
        command.args(["netns", "del", &self.name]);
        drop(command.stdin(Stdio::null()).stderr(Stdio::null()).status());
    }
}
