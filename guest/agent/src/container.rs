//! What the init runs: `/rvmm/process.json` in the initramfs, the process of a container image in OCI's words with what rvmm adds.
//!
//! ```text
//!   User, Env, Entrypoint, Cmd, WorkingDir, StopSignal, StopTimeout     as in OCI's image configuration
//!   Hostname    text
//!   Root        "/dev/vda", RootFsType "ext4", ReadOnly false
//!   Tty         the command has a terminal, OpenStdin: it reads from the console; Rows, Cols: its size
//!   Mounts      [{Source "/dev/vdb", Target "/data", Type "ext4", ReadOnly false}]
//!   Network     "dhcp", or "none"; or else Address "10.0.0.2/24", Gateway "10.0.0.1", Dns ["10.0.0.1"]
//! ```

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::json::Value;
use crate::{net, signal};

/// SIGTERM.
const TERMINATE: u32 = 15;

/// A second less than rvmm waits for the power button to help, so that the status is told in time.
const STOP_SECONDS: u64 = 9;

/// What is run, and in what.
#[derive(Debug, PartialEq, Eq)]
pub struct Container {
    /// `USER[:GROUP]`, each a name or a number; root if it is empty.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Where it runs.
    pub directory: String,
    /// How it is asked to end.
    pub stop_signal: u32,
    /// How long it may take to end, in seconds.
    pub stop_seconds: u64,
    /// The machine's name.
    pub hostname: String,
    /// The root file system.
    pub root: Mount,
    /// It has a terminal.
    pub tty: bool,
    /// It reads from the console.
    pub stdin: bool,
    /// The terminal's size, if it is known: rows and columns.
    pub size: Option<(u16, u16)>,
    /// More file systems, in order.
    pub mounts: Vec<Mount>,
    /// The network.
    pub network: Network,
}

/// A file system to be mounted.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    /// The block device.
    pub source: String,
    /// Where it goes.
    pub target: String,
    /// The file system's type.
    pub kind: String,
    /// It is not written to.
    pub read_only: bool,
}

/// How the machine gets its address.
#[derive(Debug, PartialEq, Eq)]
pub enum Network {
    /// Not at all.
    None,
    /// It asks.
    Dhcp,
    /// The host says it.
    Static {
        /// `10.0.0.2/24`.
        address: String,
        /// The way out.
        gateway: Option<String>,
        /// Name servers.
        dns: Vec<String>,
    },
}

impl Container {
    /// Reads the document. The error says which field is wrong.
    pub fn parse(document: &[u8]) -> Result<Self, String> {
        let value = Value::parse(document).ok_or("it is no JSON")?;
        let fields = Fields(&value);
        let mut argv = fields.texts("Entrypoint")?;
        argv.extend(fields.texts("Cmd")?);
        let size = match (fields.number("Rows")?, fields.number("Cols")?) {
            (Some(rows), Some(columns)) if rows > 0 && columns > 0 => Some((rows, columns)),
            _ => None,
        };
        let mounts = value.get("Mounts").map_or(Some(&[][..]), Value::as_list).ok_or("Mounts is no list")?;
        let mounts: Result<Vec<Mount>, String> = mounts
            .iter()
            .map(|mount| {
                let fields = Fields(mount);
                Ok(Mount {
                    source: fields.path("Source", "")?,
                    target: fields.path("Target", "")?,
                    kind: fields.text_or("Type", "ext4")?,
                    read_only: fields.flag("ReadOnly")?,
                })
            })
            .collect();
        let directory = fields.path("WorkingDir", "/")?;
        Ok(Container {
            user: fields.text_or("User", "")?,
            env: fields.texts("Env")?.into_iter().filter(|pair| pair.find('=') > Some(0)).collect(),
            argv,
            directory,
            stop_signal: match &fields.text_or("StopSignal", "")?[..] {
                "" => TERMINATE,
                name => signal::number(name).ok_or_else(|| format!("StopSignal `{name}` is no signal"))?,
            },
            stop_seconds: fields.number("StopTimeout")?.unwrap_or(STOP_SECONDS),
            hostname: fields.text_or("Hostname", "rvmm")?,
            root: Mount {
                source: fields.path("Root", "/dev/vda")?,
                target: "/".into(),
                kind: fields.text_or("RootFsType", "ext4")?,
                read_only: fields.flag("ReadOnly")?,
            },
            tty: fields.flag("Tty")?,
            stdin: fields.flag("OpenStdin")?,
            size,
            mounts: mounts?,
            network: network(&fields)?,
        })
    }
}

fn network(fields: &Fields) -> Result<Network, String> {
    let address = fields.text_or("Address", "")?;
    if !address.is_empty() {
        net::network(&address).ok_or_else(|| format!("Address `{address}` is not like 10.0.0.2/24"))?;
        let checked = |text: String| match net::ipv4(&text) {
            Some(_) => Ok(text),
            None => Err(format!("`{text}` is no IPv4 address")),
        };
        let gateway = fields.text_or("Gateway", "")?;
        return Ok(Network::Static {
            address,
            gateway: (!gateway.is_empty()).then(|| checked(gateway)).transpose()?,
            dns: fields.texts("Dns")?.into_iter().map(checked).collect::<Result<_, _>>()?,
        });
    }
    match &fields.text_or("Network", "dhcp")?[..] {
        "dhcp" => Ok(Network::Dhcp),
        "none" => Ok(Network::None),
        other => Err(format!("Network is dhcp or none, not `{other}`")),
    }
}

/// Fields of an object; those that are not there, or null, are empty.
struct Fields<'a>(&'a Value);

impl Fields<'_> {
    fn text_or(&self, name: &str, default: &str) -> Result<String, String> {
        let text = self.0.get(name).map_or(Some(""), Value::as_text);
        let text = text.filter(|text| !text.contains('\0')).ok_or_else(|| format!("{name} is no text"))?;
        Ok(if text.is_empty() { default } else { text }.into())
    }

    fn path(&self, name: &str, default: &str) -> Result<String, String> {
        let path = self.text_or(name, default)?;
        if path.starts_with('/') { Ok(path) } else { Err(format!("{name} `{path}` does not begin with /")) }
    }

    fn texts(&self, name: &str) -> Result<Vec<String>, String> {
        let list = self.0.get(name).map_or(Some(&[][..]), Value::as_list);
        let texts: Option<Vec<String>> = list.and_then(|list| {
            let text = |item: &Value| item.as_text().filter(|text| !text.contains('\0')).map(String::from);
            list.iter().map(text).collect()
        });
        texts.ok_or_else(|| format!("{name} is no list of texts"))
    }

    fn flag(&self, name: &str) -> Result<bool, String> {
        let flag = self.0.get(name).map_or(Some(false), Value::as_bool);
        flag.ok_or_else(|| format!("{name} is neither true nor false"))
    }

    fn number<T: TryFrom<i128>>(&self, name: &str) -> Result<Option<T>, String> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        value.as_number().map(Some).ok_or_else(|| format!("{name} is no number that can be"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_as_in_docker() {
        let container = Container::parse(br#"{"Cmd":["sh"],"Env":null,"User":""}"#).unwrap();
        assert_eq!((&container.argv[..], container.env.len()), (&["sh".into()][..], 0));
        assert_eq!((container.stop_signal, container.stop_seconds), (15, 9));
        assert_eq!((&container.directory[..], &container.root.source[..]), ("/", "/dev/vda"));
        assert_eq!((container.network, container.tty), (Network::Dhcp, false));
    }

    #[test]
    fn all_that_is_said() {
        let document = br#"{"User":"web","Env":["A=b","=x","none"],"Entrypoint":["/run"],"Cmd":["a","b"],"WorkingDir":"/srv",
            "StopSignal":"SIGRTMIN+3","StopTimeout":3,"Hostname":"box","Root":"/dev/vdc","RootFsType":"erofs","ReadOnly":true,"Tty":true,
            "Rows":24,"Cols":80,"Mounts":[{"Source":"/dev/vdb","Target":"/data","ReadOnly":true}],"Address":"10.0.0.2/24",
            "Gateway":"10.0.0.1","Dns":["10.0.0.3"],"Labels":{"x":"y"}}"#;
        let container = Container::parse(document).unwrap();
        assert_eq!(container.argv, ["/run", "a", "b"]);
        assert_eq!(container.env, ["A=b"]);
        assert_eq!((container.stop_signal, container.stop_seconds, container.size), (37, 3, Some((24, 80))));
        let mount =
            Mount { source: "/dev/vdb".into(), target: "/data".into(), kind: "ext4".into(), read_only: true };
        assert_eq!(container.mounts, [mount]);
        let network = Network::Static {
            address: "10.0.0.2/24".into(),
            gateway: Some("10.0.0.1".into()),
            dns: vec!["10.0.0.3".into()],
        };
        assert_eq!(container.network, network);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (document, wrong) in [
            ("[", "JSON"),
            (r#"{"User":5}"#, "User"),
            (r#"{"Env":"A=b"}"#, "Env"),
            (r#"{"Cmd":[1]}"#, "Cmd"),
            (r#"{"Cmd":["a\u0000b"]}"#, "Cmd"),
            (r#"{"WorkingDir":"srv"}"#, "WorkingDir"),
            (r#"{"StopSignal":"SIGNOT"}"#, "SIGNOT"),
            (r#"{"Tty":"yes"}"#, "Tty"),
            (r#"{"Network":"token-ring"}"#, "token-ring"),
            (r#"{"Address":"10.0.0.2"}"#, "Address"),
            (r#"{"Address":"10.0.0.2/8","Dns":["x"]}"#, "`x`"),
            (r#"{"Mounts":[{"Source":"/dev/vdb"}]}"#, "Target"),
            (r#"{"StopTimeout":-1}"#, "StopTimeout"),
        ] {
            let error = Container::parse(document.as_bytes()).unwrap_err();
            assert!(error.contains(wrong), "{document}: {error}");
        }
    }
}
