//! A proxy in front of a registry, that does what networks and busy registries do.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The registry answers.
    None,
    /// The connection ends after so many bytes of the answer.
    Cut(usize),
    /// An answer without the registry: the status line's end, headers, body.
    Answer(&'static str, String, &'static str),
    /// The byte at this place of the answer's body is another one.
    Wrong(usize),
    /// The registry is asked without `Range`, and the connection ends after so many bytes of the answer.
    CutWithoutRange(usize),
    /// The registry is asked without `Range`.
    NoRange,
}

/// The proxy. It asks about every request: its method and path, and how many of the kind came before.
pub struct Faulty {
    pub port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Faulty {
    pub fn new(to: u16, choose: impl Fn(&str, usize) -> Fault + Send + Sync + 'static) -> Faulty {
        Faulty::by_head(to, move |what, before, _| choose(what, before))
    }

    /// The same, of a request's headers as well.
    pub fn by_head(to: u16, choose: impl Fn(&str, usize, &str) -> Fault + Send + Sync + 'static) -> Faulty {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (log, choose) = (seen.clone(), Arc::new(choose));
        let kept = heads.clone();
        let choose = Arc::new(move |what: &str, before: usize, head: &str| {
            kept.lock().unwrap().push(head.to_owned());
            choose(what, before, head)
        });
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, choose) = (log.clone(), choose.clone());
                let Ok(stream) = stream else { return };
                // Whoever goes away in the middle is what this is about.
                thread::spawn(move || serve(stream, to, port, &log, &*choose).ok());
            }
        });
        Faulty { port, seen, heads }
    }

    /// The same with all their headers.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// The requests that came: `METHOD PATH`, and the range that was asked for.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// One request a connection.
fn serve(
    mut client: TcpStream,
    to: u16,
    own: u16,
    log: &Mutex<Vec<String>>,
    choose: &(dyn Fn(&str, usize, &str) -> Fault + Send + Sync),
) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte)? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
        // The hello of TLS, which nobody speaks here.
        if head[0] == 0x16 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let what = lines.next().unwrap_or_default().rsplit_once(' ').map_or("", |(what, _)| what).to_owned();
    let header = |name: &str| {
        let found = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
        found.map(|line| line.split_once(':').unwrap().1.trim().to_owned())
    };
    let before = {
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|known| known.split(" range").next() == Some(&what)).count();
        let range = header("range").map_or_else(String::new, |range| format!(" range {range}"));
        log.push(format!("{what}{range}"));
        before
    };
    let fault = choose(&what, before, &head);
    let length: u64 = header("content-length").map_or(0, |text| text.parse().unwrap());
    if let Fault::Answer(status, headers, body) = &fault {
        // A client that sends a body reads the answer after it.
        std::io::copy(&mut client.try_clone()?.take(length), &mut std::io::sink())?;
        let size = body.len();
        write!(
            client,
            "HTTP/1.1 {status}\r\n{headers}content-length: {size}\r\nconnection: close\r\n\r\n{body}"
        )?;
        return client.shutdown(Shutdown::Write);
    }
    let mut registry = TcpStream::connect(("127.0.0.1", to))?;
    for line in head.lines().filter(|line| !line.is_empty()) {
        let lower = line.to_ascii_lowercase();
        if lower.starts_with("connection:")
            || (matches!(fault, Fault::NoRange | Fault::CutWithoutRange(_)) && lower.starts_with("range:"))
        {
            continue;
        }
        write!(registry, "{line}\r\n")?;
    }
    write!(registry, "connection: close\r\n\r\n")?;
    std::io::copy(&mut client.try_clone()?.take(length), &mut registry)?;
    let mut answer = Vec::new();
    registry.read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    match fault {
        Fault::Wrong(at) if body + at < answer.len() => answer[body + at] ^= 1,
        Fault::Cut(at) | Fault::CutWithoutRange(at) if body + at < answer.len() => answer.truncate(body + at),
        _ => {}
    }
    // Uploads go on where they began: through this proxy.
    let head = String::from_utf8_lossy(&answer[..body.min(answer.len())])
        .replace(&format!("localhost:{to}"), &format!("localhost:{own}"));
    client.write_all(head.as_bytes())?;
    client.write_all(&answer[body.min(answer.len())..])?;
    client.shutdown(Shutdown::Write)
}
