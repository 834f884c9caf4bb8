//! Deaths of servers under a session that is in use: the action `deaths` of a guest test.
//!
//! `deaths ROUNDS FILE X Y WIDTH HEIGHT SERVER...`: a program that edits `FILE` of the guest has the keyboard. In each round each server is
//! killed, and at once a letter is typed, which must show in the rectangle; the server's successor must run, and the session must have the
//! processes that it had. Each round is a line of its own and is saved with Ctrl+S. A letter that does not show in time is typed again, so
//! that the measurement goes on, but the first one counts as lost unless the saved line has both: the letters go through the alphabet, so
//! the line tells which were lost and which came late. `none` in a server's place types a letter without a death, to compare. A lost letter
//! fails the case.
//!
//! Printed for `docs/results.md`: from the kill to the frame that shows the letter, letters lost and sessions lost, a server a row. Times are
//! the host's, so they hold the host's load and some 50 ms of looking.

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

/// Until a letter that does not show is typed again. Much longer than the longest restart, so that a late letter is not taken for a lost one.
const AGAIN: Duration = Duration::from_secs(15);

/// After a successor runs, until the next server is killed: longer than a service must run for its restart to be the first.
const PEACE: Duration = Duration::from_millis(1500);

/// For how long a picture must not change before it counts as what was there before.
const STILL: Duration = Duration::from_millis(400);

/// A letter changes at most one in so many pixels of the rectangle, even where it makes the editor shift its lines; a screen that is dark
/// or half drawn more.
const LETTER_SHARE: usize = 10;

/// A letter changes so many pixels at least; a text cursor that comes or goes, two columns of a line, fewer.
const LETTER_PIXELS: usize = 12;

/// The processes whose end is the session's.
const SESSION: &str = "pgrep -u user -x 'plasmashell|kwin_wayland|ksmserver|kate|weston|sway' | sort -n | tr '\\n' ' '";

/// In a server's place: nobody dies.
const NONE: &str = "none";

/// What the action's line asks for.
struct Series<'a> {
    rounds: u32,
    /// The file that the program edits.
    file: &'a str,
    /// x, y, width, height
    place: [u32; 4],
    servers: Vec<&'a str>,
}

impl Series<'_> {
    fn parse(arguments: &str) -> Result<Series<'_>> {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        let [rounds, file, x, y, width, height, servers @ ..] = &words[..] else {
            bail!("deaths ROUNDS FILE X Y WIDTH HEIGHT SERVER...")
        };
        let number = |word: &&str| word.parse::<u32>().with_context(|| format!("deaths: {word:?}"));
        if servers.is_empty() {
            bail!("deaths: of which servers?");
        }
        let place = [number(x)?, number(y)?, number(width)?, number(height)?];
        Ok(Series { rounds: number(rounds)?, file, place, servers: servers.to_vec() })
    }
}

/// What became of one server's deaths.
#[derive(Default)]
struct Toll {
    times: Vec<Duration>,
    letters_lost: u32,
    sessions_lost: u32,
}

/// The screen and the keyboard, from outside.
struct Desk<'a> {
    qmp: Qmp,
    folder: &'a Path,
    place: [u32; 4],
}

impl Desk<'_> {
    /// The rectangle's pixels; none while the screen has another size.
    fn look(&mut self) -> Result<Vec<u8>> {
        let [x, y, width, height] = self.place;
        let frame = Frame::take(&mut self.qmp, self.folder)?;
        let fits = frame.width >= x + width && frame.height >= y + height;
        Ok(if fits { frame.part(x, y, width, height) } else { Vec::new() })
    }

    /// The rectangle's pixels once they have not changed for a while.
    fn look_when_still(&mut self, limit: Duration) -> Result<Vec<u8>> {
        let begun = Instant::now();
        let (mut seen, mut since) = (self.look()?, Instant::now());
        while since.elapsed() < STILL {
            if begun.elapsed() > limit {
                bail!("the picture does not come to rest");
            }
            let now = self.look()?;
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
        Ok(seen)
    }

    /// Types a letter until it shows: the time from `killed`, and how often it was typed. `None` when it never does.
    fn type_until_it_shows(
        &mut self,
        letter: char,
        before: &[u8],
        killed: Instant,
        limit: Duration,
    ) -> Result<Option<(Duration, u32)>> {
        let mut tries = 0;
        while killed.elapsed() < limit {
            if killed.elapsed() >= AGAIN * tries {
                input::type_text(&mut self.qmp, &letter.to_string())?;
                tries += 1;
            }
            if shows_letter(before, &self.look()?) {
                return Ok(Some((killed.elapsed(), tries)));
            }
        }
        Ok(None)
    }
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
    let limit = Duration::from_secs(case.timeout);
    let mut desk = Desk { qmp: Qmp::connect(&folder.join("qmp.sock"))?, folder, place: series.place };
    let mut ask = |script: &str| -> Result<Result<String, String>> {
        let mut text = Vec::new();
        let mut collect = |_: Output, data: &[u8]| text.extend_from_slice(data);
        let script_request = Request::script(script, limit, &mut collect);
        let request = Request { env: file.environment(), ..script_request };
        let outcome = link.run(machine, request).context("the line to the guest broke")?;
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        Ok(match outcome {
            Outcome::Ended(guest_protocol::Status::Exited(0)) => Ok(text),
            other => Err(format!("{script}: {other:?}: {text}")),
        })
    };
    let mut tolls: Vec<Toll> = series.servers.iter().map(|_| Toll::default()).collect();
    let problem = kill_in_turn(&series, limit, &mut desk, &mut ask, &mut tolls)?;
    print!("{}", table(&series.servers, &mut tolls));
    Ok(problem)
}

/// Runs a script in the guest: what it printed, or what was wrong with it.
type Ask<'a> = dyn FnMut(&str) -> Result<Result<String, String>> + 'a;

/// All the rounds of a series: what is wrong.
fn kill_in_turn(
    series: &Series<'_>,
    limit: Duration,
    desk: &mut Desk<'_>,
    ask: &mut Ask<'_>,
    tolls: &mut [Toll],
) -> Result<Option<String>> {
    macro_rules! said {
        ($script:expr) => {
            match ask($script)? {
                Ok(text) => text,
                Err(problem) => return Ok(Some(problem)),
            }
        };
    }
    let session = said!(SESSION);
    let mut letters = ('a'..='z').cycle();
    let mut problems = Vec::new();
    for round in 1..=series.rounds {
        let mut typed = Vec::new();
        for (server, toll) in series.servers.iter().zip(&mut *tolls) {
            let letter = letters.next().unwrap_or('a');
            let before = desk.look_when_still(limit)?;
            let old = if *server == NONE { String::new() } else { said!(&kill(server)) };
            let killed = Instant::now();
            let Some((time, tries)) = desk.type_until_it_shows(letter, &before, killed, limit)? else {
                return Ok(Some(format!("round {round}: no frame after {server}'s death within {limit:?}")));
            };
            toll.times.push(time);
            typed.push((letter, tries));
            if *server != NONE {
                said!(&format!("until new=$(pgrep -o -x {server}) && [ $new != {old} ]; do sleep 0.1; done"));
            }
            std::thread::sleep(PEACE);
            let now = said!(SESSION);
            if now != session {
                toll.sessions_lost += 1;
                return Ok(Some(format!("round {round}: after {server}'s death the session is {now}, not {session}")));
            }
        }
        said!("touch /tmp/deaths-round; sleep 0.1");
        input::press(&mut desk.qmp, "ctrl-s")?;
        let saved = format!("until [ {0} -nt /tmp/deaths-round ]; do sleep 0.1; done; tail -n 1 {0}", series.file);
        let line = said!(&saved);
        let arrived = arrivals(&typed, &line);
        for (((server, toll), (letter, tries)), arrived) in
            series.servers.iter().zip(&mut *tolls).zip(&typed).zip(arrived)
        {
            if arrived < *tries {
                toll.letters_lost += tries - arrived;
                problems.push(format!(
                    "round {round}: of {tries} times {letter:?} after {server}'s death {arrived} arrived; saved: {line:?}"
                ));
            }
        }
        input::type_text(&mut desk.qmp, "\n")?;
    }
    Ok((!problems.is_empty()).then(|| problems.join("\n")))
}

/// A command that kills a server and prints who it was.
fn kill(server: &str) -> String {
    format!("old=$(pgrep -o -x {server}) && kill -KILL $old && echo $old")
}

/// How often each letter that was typed is in the saved line.
fn arrivals(typed: &[(char, u32)], line: &str) -> Vec<u32> {
    let mut rest = line.trim().chars().peekable();
    typed.iter().map(|(letter, _)| std::iter::from_fn(|| rest.next_if_eq(letter)).map(|_| 1).sum()).collect()
}

/// Whether a picture is another one by no more than a letter.
fn shows_letter(before: &[u8], now: &[u8]) -> bool {
    let pixels = before.len() / 3;
    let changed = before.chunks(3).zip(now.chunks(3)).filter(|(a, b)| a != b).count();
    before.len() == now.len() && (LETTER_PIXELS..=pixels / LETTER_SHARE).contains(&changed)
}

/// The figures.
fn table(servers: &[&str], tolls: &mut [Toll]) -> String {
    let mut text = "| server | deaths | sessions lost | letters lost | to the next frame, median | 95th percentile |\n|---|---:|---:|---:|---:|---:|\n".to_owned();
    for (server, toll) in servers.iter().zip(tolls) {
        toll.times.sort();
        let at = |part: f64| toll.times.get((part * (toll.times.len() - 1) as f64).round() as usize);
        let show = |time: Option<&Duration>| time.map_or("–".into(), |time| format!("{:.2} s", time.as_secs_f64()));
        let (deaths, sessions, letters) = (toll.times.len(), toll.sessions_lost, toll.letters_lost);
        text +=
            &format!("| `{server}` | {deaths} | {sessions} | {letters} | {} | {} |\n", show(at(0.5)), show(at(0.95)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_read_and_incomplete_ones_refused() {
        let series = Series::parse("10 /f 1 2 30 40 evdevd ext4d").unwrap();
        assert_eq!((series.rounds, series.file, series.place), (10, "/f", [1, 2, 30, 40]));
        assert_eq!(series.servers, ["evdevd", "ext4d"]);
        assert!(Series::parse("10 /f 1 2 30 40").is_err());
        assert!(Series::parse("10 /f 1 2 x 40 evdevd").is_err());
        assert!(Series::parse("").is_err());
    }

    #[test]
    fn a_letter_is_a_small_change() {
        let white = vec![255; 30_000];
        let changed = |pixels: usize| {
            let mut picture = white.clone();
            picture[..pixels * 3].fill(0);
            picture
        };
        assert!(shows_letter(&white, &changed(20)));
        assert!(!shows_letter(&white, &white));
        assert!(!shows_letter(&white, &changed(3)), "a cursor");
        assert!(shows_letter(&white, &changed(900)), "lines that are shifted");
        assert!(!shows_letter(&white, &changed(2000)), "a window");
        assert!(!shows_letter(&white, &[]));
    }

    #[test]
    fn letters_that_did_not_arrive_are_told_from_those_that_came_late() {
        let typed = [('a', 1), ('b', 1), ('c', 2), ('d', 1)];
        assert_eq!(arrivals(&typed, "abccd\n"), [1, 1, 2, 1]);
        assert_eq!(arrivals(&typed, "acd"), [1, 0, 1, 1]);
        assert_eq!(arrivals(&typed, ""), [0; 4]);
    }

    #[test]
    fn figures_are_medians_and_high_percentiles() {
        let times = [5, 1, 2, 3, 4].map(Duration::from_secs).to_vec();
        let mut tolls = [Toll { times, letters_lost: 2, sessions_lost: 1 }];
        assert!(table(&["evdevd"], &mut tolls).ends_with("| `evdevd` | 5 | 1 | 2 | 3.00 s | 5.00 s |\n"));
    }
}
