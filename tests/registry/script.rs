//! A registry that does what a test says: each request gets the answer that a function gives.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// With what follows `?`.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// Method and path in one.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    fn size(&self) -> usize {
        self.header("content-length").and_then(|size| size.parse().ok()).unwrap_or(0)
    }
}

/// An answer.
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
}

enum Body {
    Whole(Vec<u8>),
    /// Only a part of what was promised.
    Cut(Vec<u8>),
    Endless,
    /// No answer at all.
    Nothing,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Reply { status, headers: Vec::new(), body: Body::Whole(body.into()) }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.into(), value.to_string()));
        self
    }

    /// Promises more than comes.
    pub fn cut(body: &[u8]) -> Self {
        Reply { body: Body::Cut(body.into()), ..Self::new(200, "") }
    }

    pub fn status(self, status: u16) -> Self {
        Reply { status, ..self }
    }

    pub fn endless() -> Self {
        Reply { body: Body::Endless, ..Self::new(200, "") }
    }

    /// The connection ends.
    pub fn nothing() -> Self {
        Reply { body: Body::Nothing, ..Self::new(200, "") }
    }

    pub fn redirect(to: impl ToString) -> Self {
        Self::new(307, "").header("Location", to)
    }
}

/// How much of a body is read before the answer is asked for.
pub type Limit = fn(&Request) -> Option<usize>;

/// A registry.
pub struct Script {
    /// HOST:PORT.
    pub address: String,
    asked: Arc<Mutex<Vec<Request>>>,
    over: Arc<AtomicBool>,
}

impl Script {
    /// Starts one that answers as `answer` says.
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::reading(|_| None, answer)
    }

    /// Starts one that reads of some bodies only a part.
    pub fn reading(limit: Limit, answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let script = Script { address, asked: Arc::default(), over: Arc::default() };
        let (asked, over, answer) = (Arc::clone(&script.asked), Arc::clone(&script.over), Arc::new(answer));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if over.load(SeqCst) {
                    return;
                }
                let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
                // A client that goes away in the middle is none of our business.
                thread::spawn(move || serve(&client, &asked, limit, &*answer));
            }
        });
        script
    }

    /// What was asked so far.
    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().expect("no panic").clone()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
        let _ = TcpStream::connect(&self.address);
    }
}

fn serve(
    client: &TcpStream,
    asked: &Mutex<Vec<Request>>,
    limit: Limit,
    answer: &dyn Fn(&Request) -> Reply,
) -> Option<()> {
    let mut from = BufReader::new(client);
    loop {
        // Nobody here speaks TLS, which begins with this byte.
        if *from.fill_buf().ok()?.first()? == 0x16 {
            return None;
        }
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            from.read_line(&mut line).ok()?;
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_string()),
            }
        }
        let mut words = lines.first()?.split(' ');
        let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
        let header = |line: &String| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_lowercase(), value.trim().to_string()))
        };
        let headers = lines[1..].iter().filter_map(header).collect();
        let mut request = Request { method, path, headers, body: Vec::new() };
        let most = limit(&request).unwrap_or(usize::MAX).min(request.size());
        request.body = vec![0; most];
        from.read_exact(&mut request.body).ok()?;
        let reply = answer(&request);
        asked.lock().expect("no panic").push(request.clone());
        send(client, reply, request.method == "HEAD")?;
    }
}

/// Sends an answer; `None` when nothing can come after it.
fn send(mut client: &TcpStream, reply: Reply, head_only: bool) -> Option<()> {
    let mut head = format!("HTTP/1.1 {} x\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let (size, body) = match &reply.body {
        Body::Whole(body) => (body.len(), body.as_slice()),
        Body::Cut(body) => (body.len() + 100_000, body.as_slice()),
        Body::Endless => (1 << 50, &b""[..]),
        Body::Nothing => return None,
    };
    client.write_all(format!("{head}Content-Length: {size}\r\n\r\n").as_bytes()).ok()?;
    if head_only {
        return Some(());
    }
    client.write_all(body).ok()?;
    while let Body::Endless = reply.body {
        client.write_all(&[7; 1 << 14]).ok()?;
    }
    matches!(reply.body, Body::Whole(_)).then_some(())
}
