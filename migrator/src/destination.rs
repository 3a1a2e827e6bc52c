//! `--to DEST`: where the destination is, and the command that reaches it.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Where the destination is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// `ssh://[user@]host[:port]`: log in there and start one.
    Ssh {
        /// As whom; what ssh is configured to, without it.
        user: Option<String>,
        /// A name or an address.
        host: String,
        /// Its ssh server's port; what ssh is configured to, without it.
        port: Option<u16>,
    },
    /// `tcp://ADDR:PORT`: one listens there, on this machine.
    Tcp(SocketAddr),
}

impl Destination {
    /// Parses DEST.
    ///
    /// No part of it can become an option of ssh or words for a shell: user
    /// and host have none of the characters that these take for special, and
    /// do not begin with `-`. TCP goes to loopback addresses only.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fault = |why: &str| format!("--to {text:?} {why}");
        if let Some(rest) = text.strip_prefix("ssh://") {
            parse_ssh(rest.trim_end_matches('/')).map_err(|why| fault(&why))
        } else if let Some(rest) = text.strip_prefix("tcp://") {
            parse_tcp(rest.trim_end_matches('/')).map_err(|why| fault(&why))
        } else {
            Err(fault(
                "is no destination: one looks like ssh://user@host or tcp://127.0.0.1:7000",
            ))
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (user, host, port) = match self {
            Self::Tcp(address) => return write!(f, "tcp://{address}"),
            Self::Ssh { user, host, port } => (user, host, port),
        };
        f.write_str("ssh://")?;
        if let Some(user) = user {
            write!(f, "{user}@")?;
        }
        match host.contains(':') {
            true => write!(f, "[{host}]")?,
            false => f.write_str(host)?,
        }
        match port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// Takes the --rsh option apart as a shell does, with quotes and backslashes,
/// but expands nothing.
///
/// # Errors
/// Says what is wrong with the text.
pub fn split_rsh(rsh: &str) -> Result<Vec<String>, String> {
    match shlex::split(rsh) {
        None => Err(format!("--rsh {rsh:?} has a quote that does not end")),
        Some(words) if words.is_empty() => Err("--rsh names no program".into()),
        Some(words) => Ok(words),
    }
}

/// The command that logs in and starts the migrator there: `RSH [-p PORT]
/// [USER@]HOST -- REMOTE_PATH receive --stdio`.
///
/// ssh hands what follows `--` to the login shell over there as one line, so
/// the path is quoted where a shell would make something else of it.
///
/// # Errors
/// When the path is none.
pub fn login(
    rsh: &[String],
    user: Option<&str>,
    host: &str,
    port: Option<u16>,
    remote_path: &Path,
) -> Result<Vec<OsString>, String> {
    let path = remote_path.as_os_str().as_bytes();
    let path = match shlex::bytes::try_quote(path) {
        Ok(quoted) if !path.is_empty() => OsString::from_vec(quoted.into_owned()),
        _ => return Err(format!("--remote-path {remote_path:?} is no path")),
    };
    let mut words: Vec<OsString> = rsh.iter().map(OsString::from).collect();
    if let Some(port) = port {
        words.extend(["-p".into(), port.to_string().into()]);
    }
    words.push(match user {
        Some(user) => format!("{user}@{host}").into(),
        None => host.into(),
    });
    words.extend(["--".into(), path, "receive".into(), "--stdio".into()]);
    Ok(words)
}

fn parse_ssh(text: &str) -> Result<Destination, String> {
    let (user, place) = match text.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, text),
    };
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']').ok_or("has no ] behind its [")?;
            host.parse::<Ipv6Addr>()
                .map_err(|_| "has no IPv6 address in its brackets")?;
            match behind {
                "" => (host, None),
                _ => (
                    host,
                    Some(behind.strip_prefix(':').ok_or("has no : behind its ]")?),
                ),
            }
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let port = match port.map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) if port > 0 => Some(port),
        Some(_) => return Err("has a port that is none (IPv6 addresses go into [])".into()),
    };
    // A host between brackets is an address, and therefore harmless.
    if !place.starts_with('[') {
        check_word("host", host)?;
    }
    user.map(|user| check_word("user", user)).transpose()?;
    Ok(Destination::Ssh {
        user: user.map(str::to_owned),
        host: host.to_owned(),
        port,
    })
}

/// Lets pass what names of users and hosts consist of. ssh puts them into
/// commands of its configuration (%h and %r of ProxyCommand, for instance),
/// which a shell runs: CVE-2023-51385.
fn check_word(what: &str, word: &str) -> Result<(), String> {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "._-+".contains(char);
    if word.is_empty() {
        return Err(format!("has no {what}"));
    }
    if word.starts_with('-') {
        return Err(format!("has a {what} that looks like an option"));
    }
    match word.chars().find(|char| !is_plain(*char)) {
        Some(char) => Err(format!("has {char:?} in its {what}")),
        None => Ok(()),
    }
}

fn parse_tcp(text: &str) -> Result<Destination, String> {
    let address = match text.strip_prefix("localhost:") {
        // What RFC 6761 has it mean everywhere; nobody needs to be asked.
        Some(port) => port
            .parse()
            .ok()
            .map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)),
        None => text.parse().ok(),
    };
    let address = address.filter(|address| address.port() > 0).ok_or(
        "is no address and port: one looks like tcp://127.0.0.1:7000, tcp://[::1]:7000 or \
         tcp://localhost:7000; other hosts are reached with ssh://",
    )?;
    check_loopback(address.ip())?;
    Ok(Destination::Tcp(address))
}

/// Lets pass only addresses that do not leave this machine.
///
/// # Errors
/// Says why others are refused.
pub fn check_loopback(address: IpAddr) -> Result<(), String> {
    // ::ffff:127.0.0.1 is loopback as well.
    if address.to_canonical().is_loopback() {
        return Ok(());
    }
    Err(format!(
        "is not of this machine: {address} is no loopback address, and TCP is neither encrypted \
         nor authenticated; use ssh:// to reach other hosts"
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ssh(user: Option<&str>, host: &str, port: Option<u16>) -> Destination {
        Destination::Ssh {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn destinations_are_parsed_and_print_as_they_were() {
        for (text, expected) in [
            ("ssh://host", ssh(None, "host", None)),
            (
                "ssh://me@host.example",
                ssh(Some("me"), "host.example", None),
            ),
            (
                "ssh://me@10.0.0.1:2222",
                ssh(Some("me"), "10.0.0.1", Some(2222)),
            ),
            ("ssh://[fe80::1]", ssh(None, "fe80::1", None)),
            ("ssh://me@[::1]:22", ssh(Some("me"), "::1", Some(22))),
            (
                "tcp://127.0.0.1:7000",
                Destination::Tcp(([127, 0, 0, 1], 7000).into()),
            ),
            (
                "tcp://[::1]:7000",
                Destination::Tcp((Ipv6Addr::LOCALHOST, 7000).into()),
            ),
        ] {
            let parsed = Destination::parse(text).expect(text);
            assert_eq!(parsed, expected);
            assert_eq!(parsed.to_string(), text);
        }
        let local = Destination::parse("tcp://localhost:7/").expect("localhost");
        assert_eq!(local.to_string(), "tcp://127.0.0.1:7");
    }

    #[test]
    fn what_is_no_destination_is_told_why() {
        for (text, part) in [
            ("host", "is no destination"),
            ("http://host", "is no destination"),
            ("ssh://", "has no host"),
            ("ssh://@host", "has no user"),
            ("ssh://me@", "has no host"),
            ("ssh://-oProxyCommand=id", "host that looks like an option"),
            ("ssh://-x@host", "user that looks like an option"),
            ("ssh://a;id", "has ';' in its host"),
            ("ssh://$(id)@host", "has '$' in its user"),
            ("ssh://host/path", "has '/' in its host"),
            ("ssh://host:0", "port that is none"),
            ("ssh://host:x", "port that is none"),
            ("ssh://::1", "IPv6 addresses go into []"),
            ("ssh://[host]", "no IPv6 address in its brackets"),
            ("ssh://[::1", "has no ]"),
            ("ssh://[::1]22", "has no : behind"),
            ("tcp://127.0.0.1", "is no address and port"),
            ("tcp://127.0.0.1:0", "is no address and port"),
            ("tcp://host:7000", "other hosts are reached with ssh://"),
            ("tcp://10.0.0.1:7000", "neither encrypted nor authenticated"),
            ("tcp://0.0.0.0:7000", "neither encrypted nor authenticated"),
        ] {
            let why = Destination::parse(text).expect_err(text);
            assert!(why.contains(part) && why.contains("--to"), "{text}: {why}");
        }
    }

    #[test]
    fn mapped_addresses_are_loopback_when_the_mapped_one_is() {
        let address = |text: &str| text.parse().expect("an address");
        assert_eq!(check_loopback(address("::ffff:127.0.0.1")), Ok(()));
        assert_eq!(check_loopback(address("127.9.9.9")), Ok(()));
        assert!(check_loopback(address("::ffff:10.0.0.1")).is_err());
        assert!(check_loopback(address("::")).is_err());
    }

    #[test]
    fn rsh_is_split_as_a_shell_does() {
        let split = |text| split_rsh(text).expect(text);
        assert_eq!(split("ssh"), ["ssh"]);
        assert_eq!(
            split(" ssh  -i '/a b/key' -v"),
            ["ssh", "-i", "/a b/key", "-v"]
        );
        assert_eq!(split("ssh -o \"A B\" $HOME"), ["ssh", "-o", "A B", "$HOME"]);
        assert!(split_rsh("ssh 'a").expect_err("a quote").contains("quote"));
        assert!(split_rsh("  ").expect_err("empty").contains("no program"));
    }

    #[test]
    fn the_command_has_these_words() {
        let words = login(
            &["ssh".into(), "-v".into()],
            Some("me"),
            "host",
            Some(2222),
            Path::new("/opt/a b/migrator"),
        );
        let expected = [
            "ssh",
            "-v",
            "-p",
            "2222",
            "me@host",
            "--",
            "'/opt/a b/migrator'",
            "receive",
            "--stdio",
        ];
        assert_eq!(words.expect("words"), expected);
        let rsh = ["ssh".to_owned()];
        let words = login(&rsh, None, "host", None, Path::new("migrator"));
        let expected = ["ssh", "host", "--", "migrator", "receive", "--stdio"];
        assert_eq!(words.expect("words"), expected);
        assert!(login(&rsh, None, "host", None, Path::new("")).is_err());
    }

    proptest! {
        #[test]
        fn no_destination_becomes_an_option_or_shell_words(text in "(ssh|tcp)://\\PC{0,20}") {
            if let Ok(Destination::Ssh { user, host, .. }) = Destination::parse(&text) {
                for word in user.iter().chain([&host]) {
                    prop_assert!(!word.starts_with('-'));
                    let plain = |char: char| char.is_ascii_alphanumeric() || "._-+:".contains(char);
                    prop_assert!(word.chars().all(plain), "{}", word);
                }
            }
        }
    }
}
