//! HTTP/1.1 messages (RFC 9112) as far as the API needs them: a request's head is taken apart, a response put together.

use serde_json::{Value, json};

/// The longest head of a request in bytes.
pub const MAX_HEAD: usize = 16 << 10;
/// The longest body of a request in bytes.
pub const MAX_BODY: usize = 1 << 20;
/// The most fields that a head has.
const MAX_FIELDS: usize = 64;

/// What stands before the body of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The method, as it was written.
    pub method: String,
    /// The path without a query.
    pub path: String,
    /// Length of this head in bytes.
    pub len: usize,
    /// Length of the body in bytes.
    pub body_len: usize,
    /// The client sends the body when it is told to.
    pub expects_continue: bool,
    /// The client sends nothing after this request.
    pub last: bool,
}

impl Head {
    /// Takes the head at the start of `input` apart. `None` when it is not complete; a response when it is refused,
    /// after which nothing that follows can be understood.
    pub fn parse(input: &[u8]) -> Result<Option<Head>, Response> {
        let input = &input[..input.len().min(MAX_HEAD)];
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        let too_large = || Response::fault(431, format!("A head is longer than {MAX_HEAD} bytes"));
        let len = match request.parse(input) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if input.len() == MAX_HEAD => return Err(too_large()),
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(too_large()),
            Err(error) => return Err(Response::fault(400, format!("This is not HTTP: {error}"))),
        };
        let path = request.path.unwrap_or_default();
        let mut head = Head {
            method: request.method.unwrap_or_default().into(),
            path: path.split('?').next().unwrap_or_default().into(),
            len,
            body_len: 0,
            expects_continue: false,
            last: request.version == Some(0),
        };
        let mut body_len = None;
        for field in request.headers.iter() {
            head.apply(field, &mut body_len)?;
        }
        head.body_len = body_len.unwrap_or(0);
        Ok(Some(head))
    }

    /// Takes note of one field.
    fn apply(&mut self, field: &httparse::Header, body_len: &mut Option<usize>) -> Result<(), Response> {
        let value = field.value.trim_ascii();
        if field.name.eq_ignore_ascii_case("content-length") {
            let len = length(value)?;
            if body_len.is_some_and(|other| other != len) {
                return Err(Response::fault(400, "Content-Length stands twice"));
            }
            *body_len = Some(len);
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(Response::fault(
                501,
                "Transfer-Encoding is not supported: send the body with a Content-Length",
            ));
        } else if field.name.eq_ignore_ascii_case("expect") {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return Err(Response::fault(417, "Expect can only be 100-continue"));
            }
            self.expects_continue = true;
        } else if field.name.eq_ignore_ascii_case("connection") {
            let close = |option: &[u8]| option.trim_ascii().eq_ignore_ascii_case(b"close");
            self.last |= value.split(|&byte| byte == b',').any(close);
        }
        Ok(())
    }
}

/// The value of Content-Length.
fn length(value: &[u8]) -> Result<usize, Response> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Response::fault(400, "Content-Length is not a number"));
    }
    let number = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
    number
        .filter(|&len| len <= MAX_BODY)
        .ok_or_else(|| Response::fault(413, format!("A body is longer than {MAX_BODY} bytes")))
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// HTTP's number for how it went.
    pub status: u16,
    /// The methods that the path takes, when the request had another one.
    pub allow: Option<String>,
    /// JSON; `None` when there is nothing to say.
    pub body: Option<Value>,
}

impl Response {
    /// It went well, and this is what was asked for.
    pub fn ok(body: Value) -> Self {
        Response { status: 200, allow: None, body: Some(body) }
    }

    /// It was done, and there is nothing to say about it.
    pub fn done() -> Self {
        Response { status: 204, allow: None, body: None }
    }

    /// It was refused. The body is Firecracker's.
    pub fn fault(status: u16, message: impl Into<String>) -> Self {
        Response { status, allow: None, body: Some(json!({ "fault_message": message.into() })) }
    }

    /// The bytes for the client; `last` when the connection is closed behind them. A response to the method HEAD
    /// (`head_only`) is without its body.
    pub fn bytes(&self, last: bool, head_only: bool) -> Vec<u8> {
        let mut text = format!("HTTP/1.1 {} {}\r\nServer: rvmm\r\n", self.status, reason(self.status));
        if let Some(methods) = &self.allow {
            text.push_str(&format!("Allow: {methods}\r\n"));
        }
        if last {
            text.push_str("Connection: close\r\n");
        }
        match self.body.as_ref().map(Value::to_string) {
            Some(body) => {
                let len = body.len();
                text.push_str(&format!("Content-Type: application/json\r\nContent-Length: {len}\r\n\r\n"));
                text.push_str(if head_only { "" } else { &body });
            }
            None => text.push_str("\r\n"),
        }
        text.into_bytes()
    }
}

/// What tells a client to send the body that it announced.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(input: &[u8]) -> u16 {
        Head::parse(input).unwrap_err().status
    }

    #[test]
    fn reads_what_firecracker_clients_send() {
        let text = b"PUT /actions?x=y HTTP/1.1\r\nHost: localhost\r\ncontent-length: 12 \r\nExpect: 100-Continue\r\n\r\nrest";
        let head = Head::parse(text).unwrap().unwrap();
        let expected = Head {
            method: "PUT".into(),
            path: "/actions".into(),
            len: text.len() - 4,
            body_len: 12,
            expects_continue: true,
            last: false,
        };
        assert_eq!(head, expected);
    }

    #[test]
    fn knows_the_last_request() {
        for (text, last) in [
            ("GET / HTTP/1.1\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nConnection: keep-alive\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nConnection: x, Close\r\n\r\n", true),
        ] {
            assert_eq!(Head::parse(text.as_bytes()).unwrap().unwrap().last, last, "{text:?}");
        }
    }

    #[test]
    fn refuses_what_it_does_not_do() {
        let field = |field: &str| refused(format!("PUT / HTTP/1.1\r\n{field}\r\n\r\n").as_bytes());
        assert_eq!(field("Transfer-Encoding: chunked"), 501);
        assert_eq!(field("Content-Length: +5"), 400);
        assert_eq!(field("Content-Length: 5, 5"), 400);
        assert_eq!(field("Content-Length:"), 400);
        assert_eq!(field("Content-Length: 5\r\nContent-Length: 6"), 400);
        assert_eq!(field("Content-Length: 1048577"), 413);
        assert_eq!(field("Content-Length: 99999999999999999999999"), 413);
        assert_eq!(field("Expect: money"), 417);
        assert_eq!(refused(b"\0\x01\x02"), 400);
        assert_eq!(refused(b"GET / HTTP/2.0\r\n\r\n"), 400);
    }

    #[test]
    fn heads_have_a_limit() {
        let endless = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &vec![b'x'; 2 * MAX_HEAD]].concat();
        assert_eq!(Head::parse(&endless[..MAX_HEAD - 1]), Ok(None));
        assert_eq!(refused(&endless[..MAX_HEAD]), 431);
        assert_eq!(refused(&endless), 431);
        let crowd = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(refused(crowd.as_bytes()), 431);
    }

    #[test]
    fn writes_responses() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert_eq!(
            text(Response::ok(json!({"a": 1})).bytes(false, false)),
            "HTTP/1.1 200 OK\r\nServer: rvmm\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{\"a\":1}"
        );
        assert_eq!(
            text(Response::done().bytes(true, false)),
            "HTTP/1.1 204 No Content\r\nServer: rvmm\r\nConnection: close\r\n\r\n"
        );
        let fault = Response { allow: Some("GET, PUT".into()), ..Response::fault(405, "No") };
        let fault = text(fault.bytes(false, true));
        assert!(
            fault.contains("Allow: GET, PUT\r\n") && fault.ends_with("Content-Length: 22\r\n\r\n"),
            "{fault}"
        );
    }
}
