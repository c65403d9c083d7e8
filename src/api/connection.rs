//! One client's connection, without its socket: bytes in, bytes out.
//!
//! ```text
//!   receive ──► input ──► head ──► body complete ──► request ─ ─ ► respond ──► output ──► sent
//!                 ▲                                                              │
//!                 └── nothing is taken while an answer is awaited or sent ◄──────┘
//! ```

use super::http::{CONTINUE, Head, Response};

/// A connection.
#[derive(Default)]
pub struct Connection {
    input: Vec<u8>,
    /// The request whose body is awaited.
    head: Option<Head>,
    /// The request that is being answered.
    asked: Option<Head>,
    output: Vec<u8>,
    /// Nothing follows the output.
    last: bool,
    answered: u64,
}

impl Connection {
    /// Takes what a client sent.
    pub fn receive(&mut self, bytes: &[u8]) {
        if !self.last {
            self.input.extend_from_slice(bytes);
        }
    }

    /// The next request, if it is complete: head and body. It is to be answered with [`respond`](Self::respond); there
    /// is no other until the answer is sent. What cannot be understood is refused here.
    pub fn request(&mut self) -> Option<(Head, Vec<u8>)> {
        if self.last || self.asked.is_some() || !self.output.is_empty() {
            return None;
        }
        if self.head.is_none() {
            match Head::parse(&self.input) {
                Ok(head) => {
                    let head = head?;
                    self.input.drain(..head.len);
                    if head.expects_continue && self.input.len() < head.body_len {
                        self.output.extend_from_slice(CONTINUE);
                    }
                    self.head = Some(head);
                }
                Err(refusal) => {
                    self.last = true;
                    self.input.clear();
                    self.respond(&refusal);
                    return None;
                }
            }
        }
        let head = self.head.take_if(|head| self.input.len() >= head.body_len)?;
        let body = self.input.drain(..head.body_len).collect();
        self.last = head.last;
        self.asked = Some(head.clone());
        Some((head, body))
    }

    /// Answers the request that was taken.
    pub fn respond(&mut self, response: &Response) {
        let head_only = self.asked.take().is_some_and(|head| head.method == "HEAD");
        self.answered += 1;
        self.output.extend(response.bytes(self.last, head_only));
    }

    /// What is to be sent.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// The first `count` bytes of the output were sent.
    pub fn sent(&mut self, count: usize) {
        self.output.drain(..count.min(self.output.len()));
    }

    /// A request is being answered.
    pub fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Everything is said: close the connection.
    pub fn is_over(&self) -> bool {
        self.last && self.asked.is_none() && self.output.is_empty()
    }

    /// No request has begun, and nothing is to be sent.
    pub fn is_idle(&self) -> bool {
        self.input.is_empty() && self.head.is_none() && self.asked.is_none() && self.output.is_empty()
    }

    /// How many requests were answered.
    pub fn answered(&self) -> u64 {
        self.answered
    }
}

#[cfg(test)]
mod tests {
    use super::super::http::{MAX_BODY, MAX_HEAD};
    use super::*;

    /// Sends `pieces` one after the other and reads all answers; returns (method, path, body) of what was asked.
    fn talk(connection: &mut Connection, pieces: &[&[u8]]) -> (Vec<(String, String, Vec<u8>)>, String) {
        let (mut asked, mut said) = (Vec::new(), Vec::new());
        for piece in pieces {
            connection.receive(piece);
            loop {
                if let Some((head, body)) = connection.request() {
                    asked.push((head.method, head.path, body));
                    assert!(connection.request().is_none() && connection.is_asked());
                    connection.respond(&Response::done());
                }
                if connection.output().is_empty() {
                    break;
                }
                let count = connection.output().len().min(7);
                said.extend_from_slice(&connection.output()[..count]);
                connection.sent(count);
            }
        }
        (asked, String::from_utf8(said).unwrap())
    }

    const PUT: &[u8] = b"PUT /actions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}";

    #[test]
    fn every_prefix_waits_for_the_rest() {
        for cut in 0..=PUT.len() {
            let mut connection = Connection::default();
            let (asked, said) = talk(&mut connection, &[&PUT[..cut]]);
            assert_eq!(asked.len(), usize::from(cut == PUT.len()), "after {cut} bytes");
            assert_eq!(said.is_empty(), cut < PUT.len(), "after {cut} bytes");
            assert_eq!(connection.is_idle(), cut == 0 || cut == PUT.len());
            let (more, _) = talk(&mut connection, &[&PUT[cut..]]);
            assert_eq!(asked.len() + more.len(), 1);
            assert!(!connection.is_over());
        }
    }

    #[test]
    fn bytes_may_come_one_by_one() {
        let bytes: Vec<&[u8]> = PUT.chunks(1).collect();
        let (asked, _) = talk(&mut Connection::default(), &bytes);
        assert_eq!(asked, [("PUT".into(), "/actions".into(), b"{}".to_vec())]);
    }

    #[test]
    fn many_requests_may_come_at_once() {
        let mut connection = Connection::default();
        let (asked, said) = talk(&mut connection, &[&PUT.repeat(100)]);
        assert_eq!((asked.len(), connection.answered()), (100, 100));
        assert_eq!(said.matches("204 No Content").count(), 100);
        assert!(connection.is_idle());
    }

    #[test]
    fn a_client_may_wait_for_its_body_to_be_wanted() {
        let mut connection = Connection::default();
        let head = b"PUT / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
        assert_eq!(talk(&mut connection, &[head]).1, "HTTP/1.1 100 Continue\r\n\r\n");
        let (asked, said) = talk(&mut connection, &[b"{}"]);
        assert_eq!(asked.len(), 1);
        assert!(said.starts_with("HTTP/1.1 204"), "{said}");
    }

    #[test]
    fn after_a_refusal_nothing_is_heard() {
        for input in [
            b"nonsense\r\n\r\n".to_vec(),
            format!("PUT / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1).into_bytes(),
            b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
            vec![b'A'; MAX_HEAD + 1],
        ] {
            let mut connection = Connection::default();
            let (asked, said) = talk(&mut connection, &[&input, PUT]);
            assert!(asked.is_empty() && connection.is_over(), "{said}");
            assert!(said.contains("Connection: close\r\n") && said.contains("fault_message"), "{said}");
        }
    }

    #[test]
    fn bodies_may_be_as_large_as_allowed() {
        let mut input = format!("PUT / HTTP/1.1\r\nContent-Length: {MAX_BODY}\r\n\r\n").into_bytes();
        input.resize(input.len() + MAX_BODY, b'x');
        let pieces: Vec<&[u8]> = input.chunks(5000).collect();
        let (asked, _) = talk(&mut Connection::default(), &pieces);
        assert_eq!(asked[0].2.len(), MAX_BODY);
    }

    #[test]
    fn random_bytes_do_no_harm() {
        let mut seed = 0x5eed_u64;
        let mut random = move || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize
        };
        for round in 0..20_000 {
            // Half of the rounds change a valid request, the others are noise.
            let mut input = if round % 2 == 0 { PUT.repeat(3) } else { vec![0; random() % 200] };
            let changes = if round % 2 == 0 { 1 + random() % 4 } else { input.len() };
            for _ in 0..changes {
                let at = random() % input.len().max(1);
                if let Some(byte) = input.get_mut(at) {
                    *byte = random() as u8;
                }
            }
            let cut = random() % (input.len() + 1);
            let mut connection = Connection::default();
            talk(&mut connection, &[&input[..cut], &input[cut..]]);
            assert!(connection.answered() <= 4, "{input:?}");
        }
    }
}
