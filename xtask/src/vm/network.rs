//! The guests' own network, and how fast it is.

use std::fmt;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::host::Host;

/// A guest's place in the network.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat {
    /// The guest, and how the others call it.
    pub(super) name: &'static str,
    /// Its address; nobody outside of the guests sees it.
    pub(super) address: &'static str,
    mac: &'static str,
}

/// The server of the files.
pub(super) const STORAGE: Seat = Seat {
    name: "storage",
    address: "10.77.0.1",
    mac: "52:54:00:77:00:01",
};
/// The host that a process leaves.
pub(super) const SOURCE: Seat = Seat {
    name: "source",
    address: "10.77.0.2",
    mac: "52:54:00:77:00:02",
};
/// The host that it arrives on.
pub(super) const DESTINATION: Seat = Seat {
    name: "destination",
    address: "10.77.0.3",
    mac: "52:54:00:77:00:03",
};

/// Lines for /etc/hosts.
pub(super) fn hosts_file() -> String {
    [STORAGE, SOURCE, DESTINATION]
        .map(|seat| format!("{} {}\n", seat.address, seat.name))
        .concat()
}

/// QEMU's arguments for a network card. The storage's QEMU holds the hub, and
/// the others connect to it through Unix sockets in the working directory: a
/// frame takes no port or interface of this system, and none gets lost.
pub(super) fn arguments(seat: Seat) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    let card = |netdev: &str| {
        let mac = seat.mac;
        format!("virtio-net-pci,netdev={netdev},mac={mac},host_mtu=65520,rx_queue_size=1024")
    };
    if seat.name == STORAGE.name {
        add("-netdev", "hubport,id=card,hubid=0".into());
        add("-device", card("card"));
        for client in [SOURCE, DESTINATION].map(|seat| seat.name) {
            add(
                "-netdev",
                format!("stream,id={client},server=on,addr.type=unix,addr.path={client}.net"),
            );
            add(
                "-netdev",
                format!("hubport,id={client}-port,hubid=0,netdev={client}"),
            );
        }
    } else {
        add(
            "-netdev",
            format!(
                "stream,id=card,server=off,addr.type=unix,addr.path={}.net",
                seat.name
            ),
        );
        add("-device", card("card"));
    }
    arguments
}

/// QEMU's arguments for the second card, on which the guest is told what to do:
/// its ssh port as one of our loopback address. The guest reaches nothing
/// through it. (A virtio-serial port in its place lost wake-ups: once in some
/// thousand commands a guest did not hear.)
pub(super) fn control(port: u16) -> Vec<String> {
    let forward = format!("hostfwd=tcp:127.0.0.1:{port}-{CONTROL}:22");
    vec![
        "-netdev".into(),
        format!("user,id=control,restrict=on,net=10.78.0.0/24,{forward}"),
        "-device".into(),
        "virtio-net-pci,netdev=control,mac=52:54:00:78:00:01".into(),
    ]
}

/// The guest's address on that card; `tests/vm/init` has it, too.
const CONTROL: &str = "10.78.0.15";

/// A port of our loopback address that nobody listens on.
///
/// # Errors
/// There is none.
pub(super) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to find a port")?;
    let address = listener.local_addr().context("failed to find a port")?;
    Ok(address.port())
}

/// Waits until the clients can connect to the storage's QEMU: they try only
/// once.
pub(super) fn wait_for_hub(
    directory: &Path,
    check: impl Fn() -> Result<()>,
    limit: Duration,
) -> Result<()> {
    let start = Instant::now();
    let open = |seat: Seat| directory.join(format!("{}.net", seat.name)).exists();
    while !(open(SOURCE) && open(DESTINATION)) {
        check()?;
        if start.elapsed() > limit {
            bail!("the hub of the network did not open within {limit:?}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// How fast each guest can send. What is not given is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::Args)]
pub struct Link {
    /// Megabits per second that each host can send
    #[arg(long, value_name = "MBIT", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// Microseconds that each packet is late
    #[arg(long, value_name = "USEC")]
    pub delay: Option<u32>,
}

impl Link {
    /// Makes the host's link so, whatever it was before.
    pub(super) fn shape(self, host: &Host) -> Result<()> {
        host.run(&self.command())?;
        Ok(())
    }

    /// tc-netem(8). Its queue holds 10 MB in the largest frames.
    fn command(self) -> String {
        if self == Self::default() {
            // An error says that it was never shaped.
            return "tc qdisc delete dev eth0 root 2>/dev/null || true".into();
        }
        let mut command = "tc qdisc replace dev eth0 root netem limit 150".to_owned();
        if let Some(rate) = self.rate {
            command += &format!(" rate {rate}mbit");
        }
        if let Some(delay) = self.delay {
            command += &format!(" delay {delay}us");
        }
        command
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rate {
            Some(rate) => write!(f, "{rate} Mbit/s")?,
            None => f.write_str("unlimited")?,
        }
        match self.delay {
            Some(delay) => write!(f, ", {delay} µs late"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_shaped_as_asked() {
        let link = Link {
            rate: Some(100),
            delay: Some(250),
        };
        assert_eq!(
            link.command(),
            "tc qdisc replace dev eth0 root netem limit 150 rate 100mbit delay 250us"
        );
        assert!(Link::default().command().starts_with("tc qdisc delete"));
    }

    #[test]
    fn every_client_has_a_port_of_the_hub() {
        let hub = arguments(STORAGE).join(" ");
        for client in [SOURCE, DESTINATION] {
            let socket = format!("addr.path={}.net", client.name);
            assert!(hub.contains(&socket), "{hub}");
            assert!(arguments(client).join(" ").contains(&socket));
        }
    }
}
