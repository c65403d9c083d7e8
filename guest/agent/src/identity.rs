//! A clone becomes someone: clock, entropy, hostname, addresses, and what hooks add.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use agent::json::{self, Value};
use agent::{hex, net};

use crate::process::{self, Command, End};
use crate::sys::{self, Clock, Errno, Fd, Result, call, nr, open};
use crate::tree;

/// Where programs are that add to it.
const HOOKS: &str = "/etc/rvmm/clone.d";

/// How long each may take, in milliseconds.
const PATIENCE: u64 = 10_000;

const RNDADDENTROPY: usize = 0x4008_5203;
const RNDRESEEDCRNG: usize = 0x5207;

/// What was done, and what was not.
#[derive(Default)]
struct Report {
    done: Vec<Value>,
    failed: Vec<(String, Value)>,
}

impl Report {
    fn add(&mut self, what: &str, result: core::result::Result<(), String>) {
        match result {
            Ok(()) => self.done.push(json::text(what)),
            Err(reason) => self.failed.push((what.into(), Value::Text(reason))),
        }
    }

    /// Does `work` if the request has a field of that name.
    fn field(&mut self, request: &Value, name: &str, work: impl FnOnce(&Value) -> Option<Result>) {
        if let Some(value) = request.get(name) {
            let result = work(value).unwrap_or(Err(Errno::INVAL));
            self.add(name, result.map_err(|error| error.to_string()));
        }
    }
}

/// Does all that the request asks for; one thing that fails does not stop the others.
pub fn take(request: &Value) -> Value {
    let mut report = Report::default();
    // First what goes stale.
    let tolerance = request.get("tolerance_ns").and_then(Value::as_number).unwrap_or(0);
    report.field(request, "time_ns", |value| {
        let time: u64 = value.as_number()?;
        match sys::now(Clock::Realtime).abs_diff(time) > tolerance {
            true => Some(sys::set_time(time)),
            false => Some(Ok(())),
        }
    });
    report.field(request, "entropy", |value| Some(add_entropy(&hex::decode(value.as_text()?)?)));
    report.field(request, "hostname", |value| Some(set_hostname(value.as_text()?)));
    report.field(request, "machine_id", |value| {
        match sys::write_file("/etc/machine-id", format!("{}\n", value.as_text()?).as_bytes()) {
            // Such a guest has no use for it.
            Err(Errno::NOENT) => Some(Ok(())),
            result => Some(result),
        }
    });
    let mut env = Vec::from([format!("PATH={}", process::PATH)]);
    for (name, variable) in [("hostname", "RVMM_HOSTNAME"), ("machine_id", "RVMM_MACHINE_ID")] {
        env.extend(request.get(name).and_then(Value::as_text).map(|value| format!("{variable}={value}")));
    }
    for interface in request.get("interfaces").and_then(Value::as_list).unwrap_or_default() {
        let field = |field| interface.get(field).and_then(Value::as_text);
        let name = match (field("name"), field("was")) {
            (Some(name), _) => String::from(name),
            (None, Some(was)) => match with_mac(was) {
                Some(name) => name,
                None => {
                    report.add(was, Err("There is no interface with this address".into()));
                    continue;
                }
            },
            (None, None) => String::new(),
        };
        let name = name.as_str();
        for key in ["mac", "address", "gateway"] {
            let Some(value) = field(key) else { continue };
            let result = set_address(name, key, value);
            report.add(&format!("{name} {key}"), result.map_err(|error| error.to_string()));
            let variable = format!("RVMM_{name}_{key}").to_uppercase().replace(['.', '-', ':'], "_");
            env.push(format!("{variable}={value}"));
        }
    }
    for hook in hooks() {
        let command = Command {
            argv: [hook.clone()].into(),
            env: env.clone(),
            directory: String::new(),
            account: None,
        };
        let result = match command.run(PATIENCE) {
            Ok(End::Status(0)) => Ok(()),
            Ok(End::Status(status)) => Err(format!("It ended with status {status}")),
            Ok(End::Signal(9)) => Err(format!("It did not end within {} s", PATIENCE / 1000)),
            Ok(End::Signal(signal)) => Err(format!("It ended by signal {signal}")),
            Err(error) => Err(error.to_string()),
        };
        report.add(&hook, result);
    }
    json::object([("done", Value::List(report.done)), ("failed", Value::Object(report.failed))])
}

/// Mixes bytes into the kernel's random numbers, counts them as random, and has it use them at once.
fn add_entropy(bytes: &[u8]) -> Result {
    // `struct rand_pool_info`: bits, bytes, and the bytes.
    let mut pool = [0_u8; 8 + 512];
    let room = pool.get_mut(8..8 + bytes.len()).ok_or(Errno::INVAL)?;
    room.copy_from_slice(bytes);
    pool[..4].copy_from_slice(&(8 * bytes.len() as u32).to_ne_bytes());
    pool[4..8].copy_from_slice(&(bytes.len() as u32).to_ne_bytes());
    let random = Fd::open("/dev/urandom", open::READ_WRITE, 0)?;
    // SAFETY: the kernel reads the two numbers and as many bytes as the second one says, which `pool` has.
    unsafe { sys::ioctl(random.0, RNDADDENTROPY, &mut pool) }?;
    // SAFETY: it looks at no argument.
    unsafe { sys::ioctl(random.0, RNDRESEEDCRNG, &mut 0_i32) }.map(drop)
}

fn set_hostname(name: &str) -> Result {
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(Errno::INVAL);
    }
    // SAFETY: the kernel reads the name.
    unsafe { call(nr::SETHOSTNAME, [name.as_ptr() as usize, name.len(), 0, 0, 0, 0]) }?;
    // So that it is still the name after a restart, where there is such a file.
    let _ = sys::write_file("/etc/hostname", format!("{name}\n").as_bytes());
    Ok(())
}

/// Numbers of requests (`netdevice(7)`).
mod sioc {
    pub const ADDRT: usize = 0x890b;
    pub const DELRT: usize = 0x890c;
    pub const GIFFLAGS: usize = 0x8913;
    pub const SIFFLAGS: usize = 0x8914;
    pub const SIFADDR: usize = 0x8916;
    pub const SIFNETMASK: usize = 0x891c;
    pub const SIFHWADDR: usize = 0x8924;
}

const AF_INET: u16 = 2;
const ARPHRD_ETHER: u16 = 1;
const UP: u16 = 1;

/// `struct ifreq`: a name, and 24 bytes that depend on the request.
pub fn request(name: &str, family: u16, bytes: &[u8], at: usize) -> Result<[u8; 40]> {
    let mut request = [0; 40];
    if name.is_empty() || name.len() > 15 {
        return Err(Errno::INVAL);
    }
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&family.to_ne_bytes());
    request[at..at + bytes.len()].copy_from_slice(bytes);
    Ok(request)
}

/// Gives an interface its `mac`, its `address` or its `gateway`.
pub fn set_address(name: &str, key: &str, value: &str) -> Result {
    const DATAGRAM: usize = 2;
    let socket = Fd(sys::plain(nr::SOCKET, [AF_INET.into(), DATAGRAM, 0])? as i32);
    // SAFETY: all these requests read or write one `struct ifreq` of 40 bytes.
    let ask = |number, request: &mut [u8; 40]| unsafe { sys::ioctl(socket.0, number, request) }.map(drop);
    match key {
        "mac" => {
            let mac = net::mac(value).ok_or(Errno::INVAL)?;
            let set = || ask(sioc::SIFHWADDR, &mut request(name, ARPHRD_ETHER, &mac, 18)?);
            if set() != Err(Errno::BUSY) {
                return set();
            }
            // Not while it is up.
            let mut flags = request(name, 0, &[], 16)?;
            ask(sioc::GIFFLAGS, &mut flags)?;
            let before = u16::from_ne_bytes([flags[16], flags[17]]);
            ask(sioc::SIFFLAGS, &mut request(name, before & !UP, &[], 16)?)?;
            let result = set();
            ask(sioc::SIFFLAGS, &mut request(name, before, &[], 16)?)?;
            result
        }
        "address" => {
            let (address, mask) = net::network(value).ok_or(Errno::INVAL)?;
            ask(sioc::SIFADDR, &mut request(name, AF_INET, &address, 20)?)?;
            ask(sioc::SIFNETMASK, &mut request(name, AF_INET, &mask, 20)?)
        }
        _ => set_gateway(&socket, net::ipv4(value).ok_or(Errno::INVAL)?),
    }
}

/// Replaces the default route.
fn set_gateway(socket: &Fd, gateway: [u8; 4]) -> Result {
    // `struct rtentry`: destination, gateway and mask are addresses of 16 bytes from byte 8 on, then the flags.
    let mut route = [0_u8; 120];
    for at in [8, 24, 40] {
        route[at..at + 2].copy_from_slice(&AF_INET.to_ne_bytes());
    }
    let mut default = route;
    default[56] = 1;
    // SAFETY: both requests read one `struct rtentry` of 120 bytes, whose pointer to a device's name is null.
    while unsafe { sys::ioctl(socket.0, sioc::DELRT, &mut default) }.is_ok() {}
    route[28..32].copy_from_slice(&gateway);
    // It is up, and a gateway.
    route[56] = 3;
    // SAFETY: as above.
    unsafe { sys::ioctl(socket.0, sioc::ADDRT, &mut route) }.map(drop)
}

/// The hooks in the order of their names.
fn hooks() -> Vec<String> {
    let names = tree::list(HOOKS).into_iter().filter(|name| !name.starts_with('.'));
    names.map(|name| format!("{HOOKS}/{name}")).collect()
}

/// The interface that has this hardware address.
fn with_mac(mac: &str) -> Option<String> {
    let has_it = |name: &String| {
        let address = sys::read_file(&format!("/sys/class/net/{name}/address")).unwrap_or_default();
        address.trim().eq_ignore_ascii_case(mac)
    };
    tree::list("/sys/class/net").into_iter().find(has_it)
}
