use std::collections::VecDeque;

use super::*;
use crate::fake::FakeChannel;

fn fake() -> Arc<dyn Channel> {
    Arc::new(FakeChannel::new())
}

fn open(channel: &Arc<dyn Channel>, unanswered: &[u64]) -> Journal {
    Journal::open(channel.clone(), &unanswered.iter().copied().collect()).unwrap()
}

#[test]
fn a_successor_finds_what_was_recorded() {
    let channel = fake();
    let mut journal = open(&channel, &[]);
    assert!(journal.is_empty());
    journal.put(1, 7, "seven").unwrap();
    journal.put(1, 8, "eight").unwrap();
    journal.put(2, 7, &(3u32, 4u32)).unwrap();
    journal.commit(0).unwrap();
    journal.remove(1, 8);
    journal.commit(0).unwrap();
    // Never committed: never was.
    journal.put(1, 9, "nine").unwrap();
    drop(journal);
    let journal = open(&channel, &[]);
    assert_eq!(journal.all::<String>(1).unwrap(), [(7, "seven".to_owned())]);
    assert_eq!(journal.get::<(u32, u32)>(2, 7).unwrap(), Some((3, 4)));
    assert_eq!(journal.generation(), 2);
    assert_eq!(channel.keep_list().unwrap().len(), 1, "the old log is gone");
}

#[test]
fn only_the_last_record_is_taken_back_and_only_if_its_request_comes_again() {
    for (unanswered, value) in [(vec![], 3), (vec![30], 2), (vec![20], 3), (vec![20, 30], 2)] {
        let channel = fake();
        let mut journal = open(&channel, &[]);
        for (unique, value) in [(10, 1), (20, 2), (30, 3)] {
            journal.settle().unwrap();
            journal.put(0, 0, &value).unwrap();
            journal.commit(unique).unwrap();
        }
        drop(journal);
        let journal = open(&channel, &unanswered);
        assert_eq!(journal.get::<i32>(0, 0).unwrap(), Some(value), "{unanswered:?}");
    }
}

#[test]
fn a_full_log_is_written_anew_without_losing_the_way_back() {
    let channel = fake();
    let mut journal = open(&channel, &[]);
    let mut random = fastrand::Rng::with_seed(7);
    let mut model = BTreeMap::new();
    let mut before = model.clone();
    for unique in 1..4000u64 {
        // Without the compaction in `settle` every other time, so that both ways to a new log are gone.
        if random.bool() {
            journal.settle().unwrap();
        }
        before.clone_from(&model);
        for _ in 0..random.usize(1..4) {
            let id = random.u64(..40);
            if random.u8(..4) == 0 {
                journal.remove(3, id);
                model.remove(&id);
            } else {
                let value = vec![random.u8(..); random.usize(..2000)];
                journal.put(3, id, &value).unwrap();
                model.insert(id, value);
            }
        }
        journal.commit(unique).unwrap();
        if unique % 97 == 0 {
            let back = random.bool();
            drop(journal);
            journal = open(&channel, if back { std::slice::from_ref(&unique) } else { &[] });
            if back && model != before {
                model.clone_from(&before);
            }
            let found: BTreeMap<u64, Vec<u8>> = journal.all(3).unwrap().into_iter().collect();
            assert!(found == model, "after request {unique}");
        }
    }
    assert!(journal.generation() > 50);
    assert_eq!(channel.keep_list().unwrap().len(), 1);
}

#[test]
fn kept_objects_go_when_that_cannot_be_taken_back() {
    let channel = fake();
    let mut journal = open(&channel, &[]);
    let object = memfd_create("object", MemfdFlags::CLOEXEC).unwrap();
    let has = |key| channel.keep_get(key).is_ok();
    journal.keep(5, object.as_fd()).unwrap();
    journal.put(0, 5, &()).unwrap();
    journal.commit(2).unwrap();
    journal.settle().unwrap();
    journal.release(5);
    journal.remove(0, 5);
    journal.commit(4).unwrap();
    assert!(has(5), "request 4 may come again");
    journal.settle().unwrap();
    assert!(!has(5));
    journal.keep(6, object.as_fd()).unwrap();
    journal.retain_kept(|key| journal.contains(0, key)).unwrap();
    assert!(!has(6), "nobody refers to it");
    assert!(journal.keep(LOGS | 9, object.as_fd()).is_err());
}

#[test]
fn garbage_is_refused() {
    let mut random = fastrand::Rng::with_seed(3);
    for round in 0..300 {
        let channel = fake();
        let mut journal = open(&channel, &[]);
        for id in 0..5u64 {
            journal.put(0, id, &vec![id; 5]).unwrap();
            journal.commit(id).unwrap();
        }
        let fd = channel.keep_get(LOGS | journal.generation()).unwrap();
        let mut bytes = vec![0; 1024];
        rustix::io::pread(&fd, &mut bytes[..], 0).unwrap();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        if round == 0 {
            bytes = vec![0xff; 1024];
        }
        rustix::io::pwrite(&fd, &bytes, 0).unwrap();
        // Whatever it is, it is an error or some entries, never a panic.
        if let Ok(journal) = Journal::open(channel.clone(), &BTreeSet::new()) {
            let _ = journal.all::<Vec<u64>>(0);
        }
    }
}

/// Where a server is killed while it serves a request.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Death {
    Received,
    Changed,
    Recorded,
    Never,
}

/// A kernel with two clients' requests, and a server that counts: each request adds one and is told the sum. A request may
/// also be left for later, and is then answered with the next one. The answers that each request got are what is looked at.
struct Model {
    channel: Arc<dyn Channel>,
    pending: VecDeque<u64>,
    sent: BTreeSet<u64>,
    answers: BTreeMap<u64, Vec<u64>>,
}

impl Model {
    const COUNT: Table = 0;
    /// Answers that are owed: request and sum.
    const OWED: Table = 1;

    /// Serves until a death comes or all is answered. `deaths` is what happens to the requests in the order they are taken.
    fn serve(&mut self, deaths: &mut VecDeque<(Death, bool)>) -> bool {
        let unanswered = std::mem::take(&mut self.sent);
        let mut journal = Journal::open(self.channel.clone(), &unanswered).unwrap();
        for unique in unanswered.into_iter().rev() {
            self.pending.push_front(unique);
        }
        while let Some(unique) = self.pending.pop_front() {
            self.sent.insert(unique);
            let (death, later) = deaths.pop_front().unwrap_or((Death::Never, false));
            // `before`: what is owed to others goes out, recorded already.
            journal.settle().unwrap();
            let owed: Vec<(u64, u64)> = journal.all(Model::OWED).unwrap();
            for (other, sum) in owed {
                if self.sent.contains(&other) && other != unique {
                    self.answer(other, sum);
                } else if other != unique {
                    // It reached the kernel: nobody asks for it again.
                    journal.remove(Model::OWED, other);
                }
            }
            journal.commit(0).unwrap();
            if death == Death::Received {
                return false;
            }
            let again: Option<u64> = journal.get(Model::OWED, unique).unwrap();
            let sum = match again {
                Some(sum) => sum,
                None => {
                    let sum = journal.get::<u64>(Model::COUNT, 0).unwrap().unwrap_or(0) + 1;
                    journal.put(Model::COUNT, 0, &sum).unwrap();
                    if later {
                        journal.put(Model::OWED, unique, &sum).unwrap();
                    }
                    sum
                }
            };
            if death == Death::Changed {
                return false;
            }
            journal.commit(unique).unwrap();
            if death == Death::Recorded {
                return false;
            }
            if !later || again.is_some() {
                self.answer(unique, sum);
            }
        }
        let owed: Vec<(u64, u64)> = journal.all(Model::OWED).unwrap();
        for (other, sum) in owed {
            if self.sent.contains(&other) {
                self.answer(other, sum);
            }
        }
        true
    }

    fn answer(&mut self, unique: u64, sum: u64) {
        assert!(self.sent.remove(&unique), "the kernel takes one answer");
        self.answers.entry(unique).or_default().push(sum);
    }
}

/// Every way in which the server can be killed in its first four steps, with every choice of which requests are answered
/// later: each request has its effect once, and is answered once.
#[test]
fn whenever_a_server_is_killed_each_request_has_its_effect_once() {
    const STEPS: u32 = 4;
    let choices: Vec<(Death, bool)> = [Death::Received, Death::Changed, Death::Recorded, Death::Never]
        .into_iter()
        .flat_map(|death| [(death, false), (death, true)])
        .collect();
    // Three requests; eight choices a step.
    for mut script in 0..(choices.len() as u32).pow(STEPS) {
        let mut deaths = VecDeque::new();
        for _ in 0..STEPS {
            deaths.push_back(choices[script as usize % choices.len()]);
            script /= choices.len() as u32;
        }
        let told = deaths.clone();
        let mut model = Model {
            channel: fake(),
            pending: (1..=3).map(|n| n * 2).collect(),
            sent: BTreeSet::new(),
            answers: BTreeMap::new(),
        };
        let mut starts = 0;
        while !model.serve(&mut deaths) {
            starts += 1;
            assert!(starts < 20);
        }
        assert!(model.answers.values().all(|answers| answers.len() == 1), "{told:?}: {:?}", model.answers);
        let mut sums: Vec<u64> = model.answers.values().map(|answers| answers[0]).collect();
        sums.sort_unstable();
        assert_eq!(sums, [1, 2, 3], "{told:?}");
    }
}
