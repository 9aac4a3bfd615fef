//! A link that fails as networks do: between a client and a port of this machine, slow, silent, or cut in mid-message.
//!
//! Invariant: what passes is never changed or reordered; a cut loses the rest of what was on its way, as a TCP connection
//! does that ends.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often a pump that waits looks around.
const LOOK: Duration = Duration::from_millis(5);
/// Longest wait for a side that does not read; then the connection ends.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a pump takes at once; small, so that cuts fall inside messages.
const PIECE: usize = 512;

/// What a link does with what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// It passes at once.
    Fair,
    /// Every piece of up to 512 bytes passes that much later than the one before it.
    Slow(Duration),
    /// Nothing passes, and nobody is told: a cable is out, and the other side does not know.
    Silent,
    /// Connections end at once, and new ones are turned away.
    Down,
}

#[derive(Debug)]
struct State {
    weather: Mutex<Weather>,
    /// Goes up when every connection is to end.
    cuts: AtomicU64,
    over: AtomicBool,
}

impl State {
    fn weather(&self) -> Weather {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A link, which ends when it is dropped.
#[derive(Debug)]
pub struct Link {
    state: Arc<State>,
    port: u16,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// Starts one to a port of 127.0.0.1, in fair weather.
    ///
    /// # Errors
    /// If there is no port to listen on.
    pub fn to(port: u16) -> io::Result<Link> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let here = listener.local_addr()?.port();
        let state = Arc::new(State {
            weather: Mutex::new(Weather::Fair),
            cuts: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        let thread = thread::spawn(move || serve(&listener, port, &shared));
        Ok(Link {
            state,
            port: here,
            thread: Some(thread),
        })
    }

    /// The port to connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes the weather; [`Weather::Down`] also ends the connections that there are.
    pub fn set(&self, weather: Weather) {
        *(self.state.weather.lock()).unwrap_or_else(PoisonError::into_inner) = weather;
        if weather == Weather::Down {
            self.cut();
        }
    }

    /// Ends the connections that there are.
    pub fn cut(&self) {
        self.state.cuts.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        self.cut();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(listener: &TcpListener, port: u16, state: &Arc<State>) {
    let mut pumps = Vec::new();
    while !state.over.load(Ordering::SeqCst) {
        let Ok((guest, _)) = listener.accept() else {
            thread::sleep(LOOK);
            continue;
        };
        // In this order: whoever comes before a cut is cut by it.
        let cuts = state.cuts.load(Ordering::SeqCst);
        if state.weather() == Weather::Down {
            continue;
        }
        let pair = TcpStream::connect(("127.0.0.1", port))
            .and_then(|inside| Ok([(guest.try_clone()?, inside.try_clone()?), (inside, guest)]));
        for (from, to) in pair.into_iter().flatten() {
            let state = Arc::clone(state);
            pumps.push(thread::spawn(move || {
                // Either side's end, whatever it was, is the end of both.
                drop(pump(&from, &to, &state, cuts));
                drop(from.shutdown(Shutdown::Both));
                drop(to.shutdown(Shutdown::Both));
            }));
        }
        pumps.retain(|pump| !pump.is_finished());
    }
    for pump in pumps {
        drop(pump.join());
    }
}

fn pump(mut from: &TcpStream, mut to: &TcpStream, state: &State, cuts: u64) -> io::Result<()> {
    from.set_nonblocking(false)?;
    from.set_read_timeout(Some(LOOK))?;
    to.set_write_timeout(Some(LOOK))?;
    to.set_nodelay(true)?;
    let mut piece = [0; PIECE];
    let is_cut = || state.cuts.load(Ordering::SeqCst) != cuts;
    while !is_cut() {
        if state.weather() == Weather::Silent {
            thread::sleep(LOOK);
            continue;
        }
        let count = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if is_late(&error) => continue,
            Err(error) => return Err(error),
        };
        let arrived = Instant::now();
        loop {
            match state.weather() {
                _ if is_cut() => return Ok(()),
                Weather::Fair => break,
                Weather::Slow(delay) if arrived.elapsed() >= delay => break,
                Weather::Slow(_) | Weather::Silent | Weather::Down => thread::sleep(LOOK),
            }
        }
        let mut rest = piece.get(..count).unwrap_or_default();
        let began = Instant::now();
        while !rest.is_empty() {
            match to.write(rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                // It does not read; a cut is noticed all the same.
                Err(error) if is_late(&error) && !is_cut() && began.elapsed() < PATIENCE => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn is_late(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
