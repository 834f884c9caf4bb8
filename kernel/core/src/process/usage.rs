//! Resource usage: what threads consumed ([`Usage`]), summed over dead threads and reaped children ([`UsageTotals`]).
//!
//! The scheduler adds processor time and switches, the memory manager faults, the file layer input and output; each
//! counter has one writer, the thread itself, so relaxed atomics suffice and readers see a value that was true.
//! References: getrusage(2), times(2), proc_pid_stat(5).

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The counters of a live thread.
#[derive(Default, Debug)]
pub struct Usage {
    /// Nanoseconds in user mode.
    pub user_ns: AtomicU64,
    /// Nanoseconds in the kernel.
    pub system_ns: AtomicU64,
    /// Page faults served without input or output.
    pub minor_faults: AtomicU64,
    /// Page faults that waited for a pager.
    pub major_faults: AtomicU64,
    /// Switches because the thread waited.
    pub voluntary_switches: AtomicU64,
    /// Switches because another thread was to run.
    pub involuntary_switches: AtomicU64,
    /// Bytes that read calls returned.
    pub read_bytes: AtomicU64,
    /// Bytes that write calls took.
    pub written_bytes: AtomicU64,
    /// Bytes that came from storage.
    pub storage_read_bytes: AtomicU64,
    /// Bytes that went to storage.
    pub storage_written_bytes: AtomicU64,
    /// Read calls.
    pub read_calls: AtomicU64,
    /// Write calls.
    pub write_calls: AtomicU64,
}

/// A sum of [`Usage`] values.
#[derive(Clone, Copy, Default, Debug)]
#[expect(missing_docs, reason = "as in Usage")]
pub struct UsageTotals {
    pub user_ns: u64,
    pub system_ns: u64,
    pub minor_faults: u64,
    pub major_faults: u64,
    pub voluntary_switches: u64,
    pub involuntary_switches: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub storage_read_bytes: u64,
    pub storage_written_bytes: u64,
    pub read_calls: u64,
    pub write_calls: u64,
    /// Largest resident set, in pages; a sum takes the maximum.
    pub max_rss_pages: u64,
}

impl Usage {
    /// Returns the counters' present values.
    pub fn totals(&self) -> UsageTotals {
        UsageTotals {
            user_ns: self.user_ns.load(Relaxed),
            system_ns: self.system_ns.load(Relaxed),
            minor_faults: self.minor_faults.load(Relaxed),
            major_faults: self.major_faults.load(Relaxed),
            voluntary_switches: self.voluntary_switches.load(Relaxed),
            involuntary_switches: self.involuntary_switches.load(Relaxed),
            read_bytes: self.read_bytes.load(Relaxed),
            written_bytes: self.written_bytes.load(Relaxed),
            storage_read_bytes: self.storage_read_bytes.load(Relaxed),
            storage_written_bytes: self.storage_written_bytes.load(Relaxed),
            read_calls: self.read_calls.load(Relaxed),
            write_calls: self.write_calls.load(Relaxed),
            max_rss_pages: 0,
        }
    }
}

impl UsageTotals {
    /// Adds `other`.
    pub fn add(&mut self, other: &UsageTotals) {
        self.user_ns = self.user_ns.saturating_add(other.user_ns);
        self.system_ns = self.system_ns.saturating_add(other.system_ns);
        self.minor_faults = self.minor_faults.saturating_add(other.minor_faults);
        self.major_faults = self.major_faults.saturating_add(other.major_faults);
        self.voluntary_switches = self.voluntary_switches.saturating_add(other.voluntary_switches);
        self.involuntary_switches = self.involuntary_switches.saturating_add(other.involuntary_switches);
        self.read_bytes = self.read_bytes.saturating_add(other.read_bytes);
        self.written_bytes = self.written_bytes.saturating_add(other.written_bytes);
        self.storage_read_bytes = self.storage_read_bytes.saturating_add(other.storage_read_bytes);
        self.storage_written_bytes = self.storage_written_bytes.saturating_add(other.storage_written_bytes);
        self.read_calls = self.read_calls.saturating_add(other.read_calls);
        self.write_calls = self.write_calls.saturating_add(other.write_calls);
        self.max_rss_pages = self.max_rss_pages.max(other.max_rss_pages);
    }
}
