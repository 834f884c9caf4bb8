//! One event from beginning to end: rules, node, record, announcement.
//!
//! The order is udev's, and clients rely on it: when the announcement arrives, node, links and record are in place, and
//! programs of `RUN` have ended.

use std::{path::PathBuf, sync::Arc};

use rustix::time::{ClockId, clock_gettime};

use crate::{
    builtin::{self, Context},
    device::{Paths, Properties},
    event::Event,
    log,
    monitor::Announcer,
    node, program,
    queue::Subject,
    record::Record,
    rules::Rules,
};

/// What events need; replaced as a whole when rules are read again.
#[derive(Debug)]
pub struct Setup {
    /// Where the system is.
    pub paths: Arc<Paths>,
    /// The rules.
    pub rules: Rules,
    /// What builtins share.
    pub context: Context,
    /// Variables for programs.
    pub env: Arc<Vec<(String, String)>>,
}

/// What an event is about, for the order of events.
#[must_use]
pub fn subject(paths: &Arc<Paths>, properties: &Properties) -> Subject {
    let devpath = properties.get("DEVPATH").cloned().unwrap_or_default();
    let device = crate::device::Device::of_event(paths, &devpath, properties.clone());
    Subject { former: properties.get("DEVPATH_OLD").cloned(), id: device.id(), devpath }
}

/// Works on an event. An event that is none (its properties lack something) is left out.
pub fn process(setup: &Setup, properties: Properties, announcer: Option<&Announcer>) {
    let Some(mut event) = Event::new(&setup.paths, properties) else { return };
    event.extra_env = setup.env.clone();
    apply(setup, &mut event);
    if let Some(announcer) = announcer
        && let Err(error) = announcer.announce(&event)
    {
        log::warning(format_args!("{}: cannot announce it: {error}", event.device.devpath()));
    }
}

/// Applies rules to an event and lets the system follow.
pub fn apply(setup: &Setup, event: &mut Event) {
    let Some(id) = event.device.id() else { return };
    if event.action == "remove" {
        // What was known of it goes on to listeners; nothing of it is kept.
        for (key, value) in event.old.properties.clone() {
            event.properties.entry(key).or_insert(value);
        }
        event.record = event.old.clone();
        store(event.device.devpath(), setup.paths.store.index_tags(&id, &event.old.tags, &Default::default()));
        store(event.device.devpath(), setup.paths.store.remove(&id));
        setup.rules.apply(event, &setup.context);
        node::remove(event);
    } else {
        if event.action == "move" {
            take_over(setup, event, &id);
        }
        setup.rules.apply(event, &setup.context);
        node::update(event);
        let time = event.old.initialized.unwrap_or_else(now);
        event.record.initialized = Some(time);
        event.properties.insert("USEC_INITIALIZED".into(), time.to_string());
        store(event.device.devpath(), setup.paths.store.index_tags(&id, &event.old.tags, &event.record.tags));
        let keep_empty = event.device.number_of_node().is_some() || event.device.interface().is_some();
        let has_node = event.device.number_of_node().is_some();
        store(event.device.devpath(), setup.paths.store.write(&id, &event.record, has_node, keep_empty));
    }
    for (command, is_builtin) in event.run.clone() {
        if is_builtin {
            builtin::run(&command, event, &setup.context);
            continue;
        }
        match program::run(&command, event, &setup.context.programs) {
            Ok(outcome) if outcome.success => {}
            Ok(_) => log::debug(format_args!("{}: {command}: failed", event.device.devpath())),
            Err(error) => log::warning(format_args!("{}: {command}: {error}", event.device.devpath())),
        }
    }
}

fn store(devpath: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        log::error(format_args!("{devpath}: cannot store what is known of it: {error}"));
    }
}

/// A device without a number is known by its name: after a move its record has another one.
fn take_over(setup: &Setup, event: &mut Event, id: &str) {
    let Some(former) = event.properties.get("DEVPATH_OLD") else { return };
    let old_name = former.rsplit('/').next().unwrap_or_default();
    let Some(old_id) = event.device.subsystem().map(|subsystem| format!("+{subsystem}:{old_name}")) else { return };
    if id.starts_with('+') && old_id != id {
        let old: Record = setup.paths.store.read(&old_id).unwrap_or_default();
        store(event.device.devpath(), setup.paths.store.index_tags(&old_id, &old.tags, &Default::default()));
        store(event.device.devpath(), setup.paths.store.remove(&old_id));
        event.record.tags.extend(old.tags.iter().cloned());
        event.old = Record { tags: Default::default(), ..old };
    }
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// Reads rules and the hardware database, and reports what is wrong with them.
#[must_use]
pub fn load(paths: &Arc<Paths>, folders: &[PathBuf], env: Vec<(String, String)>) -> Setup {
    let (rules, problems) = Rules::load(folders);
    for (file, problem) in problems {
        log::warning(format_args!("{}: {problem}", file.display()));
    }
    Setup { paths: paths.clone(), rules, context: Context::of_system(), env: Arc::new(env) }
}
