//! What the API offers: the table of routes, and the request to the monitor that stands behind each.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::http::Response;
use crate::options;
use crate::vmm::chain;
use crate::vmm::message::Outbox;
use crate::vmm::request::{Error, Freeze, Request, Response as Answer, Save};

type Action = fn(&Service, &[u8]) -> Result<Response, Response>;

/// Method, path, what is done. Firecracker's paths where it has one.
const ROUTES: [(&str, &str, Action); 11] = [
    ("GET", "/", Service::instance),
    ("GET", "/version", Service::version),
    ("GET", "/vm", Service::describe),
    ("PATCH", "/vm", Service::change_state),
    ("GET", "/vm/config", Service::config),
    ("GET", "/vm/end", Service::end),
    ("GET", "/machine-config", Service::machine_config),
    ("PUT", "/actions", Service::act),
    ("PUT", "/snapshot/create", Service::save),
    ("PUT", "/disk/save", Service::save_disk),
    ("PUT", "/disk/base", Service::stand_on),
];

/// Body of `PATCH /vm`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vm {
    state: Wanted,
}

#[derive(Clone, Copy, Deserialize)]
enum Wanted {
    Paused,
    Resumed,
}

/// Body of `PUT /snapshot/create`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Snapshot {
    /// The directory to be made.
    path: PathBuf,
    /// An earlier snapshot: only what differs from it is written.
    base: Option<PathBuf>,
    /// End the machine afterwards.
    #[serde(default)]
    stop: bool,
    /// Have the guest's agent freeze its file systems meanwhile: `no`, `if-possible`, `must`.
    #[serde(default)]
    freeze: Freeze,
}

/// Body of `PUT /disk/save`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskSave {
    /// The directory in which the overlays are linked.
    path: PathBuf,
    /// Have the guest's agent, if there is one, freeze its file systems meanwhile.
    #[serde(default)]
    freeze: bool,
}

/// Body of `PUT /disk/base`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskBase {
    /// The map of an image's layers and the layers, the lowest first.
    base: Vec<PathBuf>,
    /// How many overlays are in them.
    above: usize,
}

/// Body of `PUT /actions`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Actions {
    action_type: ActionType,
}

#[derive(Clone, Copy, Deserialize)]
enum ActionType {
    /// Firecracker's way to ask the guest to shut down.
    SendCtrlAltDel,
    PowerButton,
    Stop,
    Kill,
    /// Firecracker boots with this; a machine here runs from its start.
    InstanceStart,
}

/// The API of one machine.
pub struct Service {
    name: String,
    monitor: Box<dyn Fn(Request) -> Answer + Send + Sync>,
}

impl Service {
    /// The API of the machine `name`, whose monitor hears at `outbox`.
    pub fn new(name: &str, outbox: Outbox) -> Self {
        Self::with_monitor(name, move |request| outbox.request(request))
    }

    /// The API of a machine that `monitor` stands for.
    pub(super) fn with_monitor(
        name: &str,
        monitor: impl Fn(Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Service { name: name.into(), monitor: Box::new(monitor) }
    }

    /// Answers one request.
    pub(super) fn answer(&self, method: &str, path: &str, body: &[u8]) -> Response {
        let here = || ROUTES.iter().filter(|(_, known, _)| *known == path);
        match here().find(|(known, ..)| *known == method) {
            Some((.., action)) => action(self, body).unwrap_or_else(|refusal| refusal),
            None => {
                let methods: Vec<&str> = here().map(|(method, ..)| *method).collect();
                match methods.is_empty() {
                    true => unknown(path),
                    false => not_allowed(method, path, &methods),
                }
            }
        }
    }

    fn ask(&self, request: Request) -> Result<Value, Response> {
        (self.monitor)(request).map_err(|error| {
            let status = match error {
                Error::State { .. } => 409,
                Error::Save(_) | Error::Freeze(_) => 400,
                Error::Ended => 503,
            };
            Response::fault(status, chain(&error))
        })
    }

    /// Answers when the snapshot is written.
    fn save(&self, body: &[u8]) -> Result<Response, Response> {
        let Snapshot { path, base, stop, freeze } = parse(body)?;
        if !path.is_absolute() || base.as_ref().is_some_and(|base| !base.is_absolute()) {
            return Err(relative());
        }
        self.ask(Request::Save(Save { target: path, base, stop, freeze })).map(Response::ok)
    }

    /// Answers when the overlays are durable.
    fn save_disk(&self, body: &[u8]) -> Result<Response, Response> {
        let DiskSave { path, freeze } = parse(body)?;
        if !path.is_absolute() {
            return Err(relative());
        }
        self.ask(Request::SaveDisk { target: path, freeze }).map(Response::ok)
    }

    /// Says whether the disk stands on these layers now.
    fn stand_on(&self, body: &[u8]) -> Result<Response, Response> {
        let DiskBase { base, above } = parse(body)?;
        if base.iter().any(|path| !path.is_absolute()) {
            return Err(relative());
        }
        self.ask(Request::StandOn { base, above }).map(Response::ok)
    }

    fn instance(&self, _body: &[u8]) -> Result<Response, Response> {
        let machine = self.ask(Request::Describe)?;
        Ok(Response::ok(json!({
            "app_name": "rvmm",
            "id": self.name,
            "state": machine["state"],
            "vmm_version": machine["vmm_version"],
        })))
    }

    fn version(&self, _body: &[u8]) -> Result<Response, Response> {
        Ok(Response::ok(json!({ "vmm_version": env!("CARGO_PKG_VERSION") })))
    }

    fn describe(&self, _body: &[u8]) -> Result<Response, Response> {
        let mut machine = self.ask(Request::Describe)?;
        machine["name"] = self.name.as_str().into();
        Ok(Response::ok(machine))
    }

    /// Answers when the machine ends: with the cause, as `--json` tells it.
    fn end(&self, _body: &[u8]) -> Result<Response, Response> {
        self.ask(Request::AwaitEnd).map(Response::ok)
    }

    fn config(&self, _body: &[u8]) -> Result<Response, Response> {
        Ok(Response::ok(self.ask(Request::Describe)?["config"].take()))
    }

    fn machine_config(&self, _body: &[u8]) -> Result<Response, Response> {
        Ok(Response::ok(self.ask(Request::Describe)?["config"]["machine-config"].take()))
    }

    fn change_state(&self, body: &[u8]) -> Result<Response, Response> {
        self.ask(match parse::<Vm>(body)?.state {
            Wanted::Paused => Request::Pause,
            Wanted::Resumed => Request::Resume,
        })?;
        Ok(Response::done())
    }

    fn act(&self, body: &[u8]) -> Result<Response, Response> {
        let request = match parse::<Actions>(body)?.action_type {
            ActionType::SendCtrlAltDel | ActionType::PowerButton => Request::PowerButton,
            ActionType::Stop => Request::Stop { force: false },
            ActionType::Kill => Request::Stop { force: true },
            ActionType::InstanceStart => {
                return Err(Response::fault(409, "The machine runs since its start"));
            }
        };
        let ends = matches!(request, Request::Stop { .. });
        let answer = self.ask(request)?;
        // Whoever ends it hears whether that was it.
        Ok(if ends { Response::ok(answer) } else { Response::done() })
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Response> {
    let fault = |error| Response::fault(400, format!("The body is not what is wanted here: {error}"));
    serde_json::from_slice(body).map_err(fault)
}

fn relative() -> Response {
    Response::fault(400, "Paths must be absolute: the machine has a directory of its own")
}

fn unknown(path: &str) -> Response {
    let known = ROUTES.map(|(_, path, _)| path);
    let nearest = options::nearest(path, &known).unwrap_or_default();
    Response::fault(404, format!("There is no `{path}`, did you mean `{nearest}`?"))
}

fn not_allowed(method: &str, path: &str, methods: &[&str]) -> Response {
    let allowed = methods.join(", ");
    let fault = Response::fault(405, format!("`{path}` does not take {method}, only {allowed}"));
    Response { allow: Some(allowed), ..fault }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::vmm::request::RunState;

    /// A service whose monitor keeps a state and remembers what it was asked.
    pub fn service() -> (Service, Arc<Mutex<Vec<Request>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let state = Mutex::new(RunState::Running);
        let log = Arc::clone(&asked);
        let monitor = move |request: Request| {
            let mut state = state.lock().unwrap();
            request.check(*state)?;
            match request {
                Request::Pause => *state = RunState::Paused,
                Request::Resume => *state = RunState::Running,
                _ => {}
            }
            log.lock().unwrap().push(request);
            let config = json!({ "machine-config": { "vcpu_count": 2 } });
            Ok(json!({ "state": *state, "vmm_version": "1", "config": config }))
        };
        (Service::with_monitor("web", monitor), asked)
    }

    fn status(service: &Service, method: &str, path: &str, body: &str) -> u16 {
        service.answer(method, path, body.as_bytes()).status
    }

    #[test]
    fn tells_about_the_machine() {
        let (service, _) = service();
        let get = |path| service.answer("GET", path, b"").body.unwrap();
        assert_eq!(
            get("/"),
            json!({ "app_name": "rvmm", "id": "web", "state": "Running", "vmm_version": "1" })
        );
        assert_eq!(get("/vm")["name"], "web");
        assert_eq!(get("/vm/config"), json!({ "machine-config": { "vcpu_count": 2 } }));
        assert_eq!(get("/machine-config"), json!({ "vcpu_count": 2 }));
        assert_eq!(get("/version")["vmm_version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn passes_requests_on() {
        let (service, asked) = service();
        for (answer, method, path, body) in [
            (204, "PATCH", "/vm", r#"{"state":"Paused"}"#),
            (204, "PATCH", "/vm", r#"{"state":"Resumed"}"#),
            (204, "PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#),
            (204, "PUT", "/actions", r#"{"action_type":"PowerButton"}"#),
            // What they ended is in the body.
            (200, "PUT", "/actions", r#"{"action_type":"Stop"}"#),
            (200, "PUT", "/actions", r#"{"action_type":"Kill"}"#),
        ] {
            assert_eq!(status(&service, method, path, body), answer, "{body}");
        }
        let stop = |force| Request::Stop { force };
        use Request::{Pause, PowerButton, Resume};
        assert_eq!(
            *asked.lock().unwrap(),
            [Pause, Resume, PowerButton, PowerButton, stop(false), stop(true)]
        );
    }

    #[test]
    fn says_what_is_wrong() {
        let (service, asked) = service();
        for (expected, method, path, body) in [
            (400, "PATCH", "/vm", ""),
            (400, "PATCH", "/vm", "{"),
            (400, "PATCH", "/vm", r#"{"state":"Asleep"}"#),
            (400, "PATCH", "/vm", r#"{"state":"Paused","then":1}"#),
            (400, "PUT", "/actions", r#"{"action_type":["Stop"]}"#),
            (400, "PUT", "/actions", "\u{0}"),
            (404, "GET", "/vmm", ""),
            (404, "GET", "*", ""),
            (404, "GET", "", ""),
            (405, "PUT", "/vm", ""),
            (405, "get", "/", ""),
            (409, "PATCH", "/vm", r#"{"state":"Resumed"}"#),
            (409, "PUT", "/actions", r#"{"action_type":"InstanceStart"}"#),
        ] {
            let response = service.answer(method, path, body.as_bytes());
            assert_eq!(response.status, expected, "{method} {path} {body}");
            assert!(response.body.unwrap()["fault_message"].is_string());
        }
        assert!(asked.lock().unwrap().is_empty());
        assert_eq!(service.answer("PUT", "/vm", b"").allow.unwrap(), "GET, PATCH");
        let message = service.answer("GET", "/vmm", b"").body.unwrap();
        assert_eq!(message["fault_message"], "There is no `/vmm`, did you mean `/vm`?");
        let ended = Service::with_monitor("gone", |_| Err(Error::Ended));
        assert_eq!(status(&ended, "GET", "/", ""), 503);
    }
}
