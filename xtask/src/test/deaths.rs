//! Deaths of servers under a session that is in use: the action `deaths` of a guest test.
//!
//! `deaths ROUNDS X Y WIDTH HEIGHT SERVER...`: in each round each server is killed, a letter is typed at once and again until it shows in
//! the rectangle, and the session must have the processes that it had. A round is a line. The letters go through the alphabet, so a letter
//! that came twice (typed again while the first was on its way) is told from one that was lost; what was typed, without repetitions, is left
//! in `/tmp/typed` for the case to compare with what the program has saved. Printed for `docs/results.md`: from the kill to the frame that shows the letter, and how
//! many sessions were lost. Times are the host's, so they hold the host's load and some 50 ms of looking.

use super::cases::{Case, File};
use crate::machine::Machine;
use crate::machine::link::{Link, Outcome, Output, Request};
use crate::machine::qmp::Qmp;
use crate::vm::input;
use crate::vm::screen::Frame;
use anyhow::{Context, Result, bail};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two tries to type a letter. Enough for a frame of an emulated machine.
const AGAIN: Duration = Duration::from_secs(2);

/// After a letter shows, until the next server is killed: longer than a service must run for its restart to be the first.
const PEACE: Duration = Duration::from_millis(1500);

/// A letter changes at most one in so many pixels of the rectangle; a screen that is dark or half drawn more.
const LETTER_SHARE: usize = 50;

/// The processes whose end is the session's.
const SESSION: &str = "pgrep -u user -x 'plasmashell|kwin_wayland|ksmserver|kate|weston|sway' | sort -n | tr '\\n' ' '";

/// What the action's line asks for.
struct Series<'a> {
    rounds: u32,
    /// x, y, width, height
    place: [u32; 4],
    servers: Vec<&'a str>,
}

impl Series<'_> {
    fn parse(arguments: &str) -> Result<Series<'_>> {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        let [rounds, x, y, width, height, servers @ ..] = &words[..] else {
            bail!("deaths ROUNDS X Y WIDTH HEIGHT SERVER...")
        };
        let number = |word: &&str| word.parse::<u32>().with_context(|| format!("deaths: {word:?}"));
        if servers.is_empty() {
            bail!("deaths: of which servers?");
        }
        let place = [number(x)?, number(y)?, number(width)?, number(height)?];
        Ok(Series { rounds: number(rounds)?, place, servers: servers.to_vec() })
    }
}

/// What became of one server's deaths.
#[derive(Default)]
struct Toll {
    times: Vec<Duration>,
    lost: u32,
}

/// Runs a series: what is wrong. `Err` when the line to the guest or to QEMU broke.
pub fn run(
    machine: &Machine,
    link: &mut Link<&UnixStream>,
    folder: &Path,
    file: &File,
    case: &Case,
    arguments: &str,
) -> Result<Option<String>> {
    let series = Series::parse(arguments)?;
    let [x, y, width, height] = series.place;
    let mut qmp = Qmp::connect(&folder.join("qmp.sock"))?;
    // Nothing while the screen has another size.
    let look = |qmp: &mut Qmp| -> Result<Vec<u8>> {
        let frame = Frame::take(qmp, folder)?;
        let fits = frame.width >= x + width && frame.height >= y + height;
        Ok(if fits { frame.part(x, y, width, height) } else { Vec::new() })
    };
    let mut ask = |script: &str| -> Result<Result<String, String>> {
        let mut text = Vec::new();
        let mut collect = |_: Output, data: &[u8]| text.extend_from_slice(data);
        let script_request = Request::script(script, Duration::from_secs(case.timeout), &mut collect);
        let request = Request { env: file.environment(), ..script_request };
        let outcome = link.run(machine, request).context("the line to the guest broke")?;
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        Ok(match outcome {
            Outcome::Ended(guest_protocol::Status::Exited(0)) => Ok(text),
            other => Err(format!("{script}: {other:?}: {text}")),
        })
    };
    macro_rules! said {
        ($script:expr) => {
            match ask($script)? {
                Ok(text) => text,
                Err(problem) => return Ok(Some(problem)),
            }
        };
    }
    let session = said!(SESSION);
    let mut tolls: Vec<Toll> = series.servers.iter().map(|_| Toll::default()).collect();
    let mut typed = String::new();
    let mut letters = ('a'..='z').cycle();
    for round in 1..=series.rounds {
        for (server, toll) in series.servers.iter().zip(&mut tolls) {
            let letter = letters.next().unwrap_or('a');
            let before = look(&mut qmp)?;
            said!(&format!("kill -KILL $(pgrep -o -x {server})"));
            let killed = Instant::now();
            let limit = Duration::from_secs(case.timeout);
            let mut tries = 0;
            while !shows_letter(&before, &look(&mut qmp)?) {
                if killed.elapsed() > limit {
                    return Ok(Some(format!("round {round}: no frame after {server}'s death within {limit:?}")));
                }
                if killed.elapsed() >= AGAIN * tries {
                    input::type_text(&mut qmp, &letter.to_string())?;
                    tries += 1;
                }
            }
            toll.times.push(killed.elapsed());
            typed.push(letter);
            std::thread::sleep(PEACE);
            let now = said!(SESSION);
            if now != session {
                toll.lost += 1;
                return Ok(Some(format!("round {round}: after {server}'s death the session is {now}, not {session}")));
            }
        }
        input::type_text(&mut qmp, "\n")?;
        std::thread::sleep(PEACE);
    }
    said!(&format!("echo {typed} > /tmp/typed"));
    print!("{}", table(&series.servers, &mut tolls));
    Ok(None)
}

/// Whether a picture is another one by no more than a letter.
fn shows_letter(before: &[u8], now: &[u8]) -> bool {
    let pixels = before.len() / 3;
    let changed = before.chunks(3).zip(now.chunks(3)).filter(|(a, b)| a != b).count();
    before.len() == now.len() && (1..=pixels / LETTER_SHARE).contains(&changed)
}

/// The figures.
fn table(servers: &[&str], tolls: &mut [Toll]) -> String {
    let mut text = "| server | deaths | sessions lost | to the next frame, median | 95th percentile |\n|---|---:|---:|---:|---:|\n".to_owned();
    for (server, toll) in servers.iter().zip(tolls) {
        toll.times.sort();
        let at = |part: f64| toll.times.get((part * (toll.times.len() - 1) as f64).round() as usize);
        let show = |time: Option<&Duration>| time.map_or("–".into(), |time| format!("{:.2} s", time.as_secs_f64()));
        let (deaths, lost) = (toll.times.len(), toll.lost);
        text += &format!("| `{server}` | {deaths} | {lost} | {} | {} |\n", show(at(0.5)), show(at(0.95)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_read_and_incomplete_ones_refused() {
        let series = Series::parse("10 1 2 30 40 evdevd ext4d").unwrap();
        assert_eq!((series.rounds, series.place, series.servers), (10, [1, 2, 30, 40], vec!["evdevd", "ext4d"]));
        assert!(Series::parse("10 1 2 30 40").is_err());
        assert!(Series::parse("10 1 2 x 40 evdevd").is_err());
        assert!(Series::parse("").is_err());
    }

    #[test]
    fn a_letter_is_a_small_change() {
        let white = vec![255; 300];
        let (mut letter, mut window) = (white.clone(), white.clone());
        letter[7] = 0;
        window[..30].fill(0);
        assert!(shows_letter(&white, &letter));
        assert!(!shows_letter(&white, &white));
        assert!(!shows_letter(&white, &window));
        assert!(!shows_letter(&white, &[]));
    }

    #[test]
    fn figures_are_medians_and_high_percentiles() {
        let times = [5, 1, 2, 3, 4].map(Duration::from_secs).to_vec();
        let mut tolls = [Toll { times, lost: 1 }];
        assert!(table(&["evdevd"], &mut tolls).ends_with("| `evdevd` | 5 | 1 | 3.00 s | 5.00 s |\n"));
    }
}
