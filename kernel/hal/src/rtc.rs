//! The CMOS real-time clock, read at boot for the wall clock and written back when that is set.
//!
//! References: MC146818A data sheet; ACPI 6.5, 5.2.9 (CENTURY).

use crate::pio::{inb, outb};
use crate::sync::IrqLock;

/// The index/data pair is one for all users.
static PORTS: IrqLock<()> = IrqLock::new(());

mod reg {
    pub const SECONDS: u8 = 0;
    pub const MINUTES: u8 = 2;
    pub const HOURS: u8 = 4;
    pub const DAY: u8 = 7;
    pub const MONTH: u8 = 8;
    pub const YEAR: u8 = 9;
    pub const STATUS_A: u8 = 10;
    pub const STATUS_B: u8 = 11;
}
const UPDATING: u8 = 0x80;
const MODE_24H: u8 = 0x02;
const MODE_BINARY: u8 = 0x04;
const FREEZE: u8 = 0x80;

fn cmos_read(index: u8) -> u8 {
    // SAFETY: CMOS RAM; the callers hold PORTS. Bit 7 of the index would mask NMIs and stays clear.
    unsafe {
        outb(0x70, index & 0x7f);
        inb(0x71)
    }
}
fn cmos_write(index: u8, v: u8) {
    // SAFETY: as above; only time registers are written.
    unsafe {
        outb(0x70, index & 0x7f);
        outb(0x71, v);
    }
}

/// Date and time fields as the clock has them, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateTime {
    /// Full year.
    pub year: u32,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
    /// 0 to 23.
    pub hour: u32,
    /// 0 to 59.
    pub minute: u32,
    /// 0 to 60.
    pub second: u32,
}

fn from_bcd(v: u8) -> u32 {
    u32::from(v >> 4) * 10 + u32::from(v & 15)
}

/// Decodes raw registers: seconds, minutes, hours, day, month, year of the century, century (0: unknown).
pub fn decode(raw: [u8; 7], status_b: u8) -> Option<DateTime> {
    let num = |v: u8| if status_b & MODE_BINARY != 0 { u32::from(v) } else { from_bcd(v) };
    let mut hour = num(raw[2] & 0x7f);
    if status_b & MODE_24H == 0 {
        if !(1..=12).contains(&hour) {
            return None;
        }
        hour = hour % 12 + if raw[2] & 0x80 != 0 { 12 } else { 0 };
    }
    let (year, century) = (num(raw[5]), num(raw[6]));
    let year = match century {
        19..=29 => century * 100 + year,
        _ if year < 70 => 2000 + year,
        _ => 1900 + year,
    };
    let t = DateTime { year, month: num(raw[4]), day: num(raw[3]), hour, minute: num(raw[1]), second: num(raw[0]) };
    let valid = (1..=12).contains(&t.month)
        && (1..=31).contains(&t.day)
        && t.hour < 24
        && t.minute < 60
        && t.second <= 60
        && (1970..3000).contains(&t.year);
    valid.then_some(t)
}

impl DateTime {
    /// Seconds since 1970-01-01 UTC (proleptic Gregorian calendar).
    pub fn unix(&self) -> i64 {
        // Days by counting years from March, so that leap days come last.
        let (y, m) = if self.month > 2 {
            (i64::from(self.year), i64::from(self.month) - 3)
        } else {
            (i64::from(self.year) - 1, i64::from(self.month) + 9)
        };
        let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + i64::from(self.day) - 1 - 719_468;
        days * 86_400 + i64::from(self.hour * 3600 + self.minute * 60 + self.second)
    }

    /// The fields of a time at or after 1970.
    pub fn from_unix(seconds: i64) -> Self {
        let (days, rest) = (seconds.div_euclid(86_400) + 719_468, seconds.rem_euclid(86_400) as u32);
        let era = days.div_euclid(146_097);
        let doe = days.rem_euclid(146_097);
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let month = (if mp < 10 { mp + 3 } else { mp - 9 }) as u32;
        Self {
            year: (yoe + era * 400 + i64::from(month <= 2)) as u32,
            month,
            day: (doy - (153 * mp + 2) / 5 + 1) as u32,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }
}

fn century_index() -> Option<u8> {
    crate::acpi::fadt().map(|f| f.century).filter(|c| (0x0e..0x80).contains(c))
}

/// Seconds since 1970-01-01 UTC by the real-time clock (taken to run in UTC). `None` when it holds no valid time.
pub fn read() -> Option<i64> {
    let _ports = PORTS.lock();
    let sample = || {
        let century = century_index().map_or(0, cmos_read);
        [reg::SECONDS, reg::MINUTES, reg::HOURS, reg::DAY, reg::MONTH, reg::YEAR]
            .map(cmos_read)
            .into_iter()
            .chain([century])
    };
    let mut last = [0xffu8; 7];
    // Two equal samples outside an update are a consistent time. An update takes 2 ms at most.
    for _ in 0..20_000 {
        if cmos_read(reg::STATUS_A) & UPDATING != 0 {
            continue;
        }
        let mut now = [0; 7];
        now.iter_mut().zip(sample()).for_each(|(n, s)| *n = s);
        if now == last {
            return decode(now, cmos_read(reg::STATUS_B)).map(|t| t.unix());
        }
        last = now;
    }
    None
}

/// Sets the real-time clock.
pub fn write(seconds: i64) {
    let t = DateTime::from_unix(seconds);
    let _ports = PORTS.lock();
    let b = cmos_read(reg::STATUS_B);
    let enc = |v: u32| if b & MODE_BINARY != 0 { v as u8 } else { ((v / 10) << 4 | (v % 10)) as u8 };
    let hour = match (b & MODE_24H != 0, t.hour) {
        (true, h) => enc(h),
        (false, h) => enc(if h % 12 == 0 { 12 } else { h % 12 }) | if h >= 12 { 0x80 } else { 0 },
    };
    cmos_write(reg::STATUS_B, b | FREEZE);
    cmos_write(reg::SECONDS, enc(t.second));
    cmos_write(reg::MINUTES, enc(t.minute));
    cmos_write(reg::HOURS, hour);
    cmos_write(reg::DAY, enc(t.day));
    cmos_write(reg::MONTH, enc(t.month));
    cmos_write(reg::YEAR, enc(t.year % 100));
    if let Some(c) = century_index() {
        cmos_write(c, enc(t.year / 100));
    }
    cmos_write(reg::STATUS_B, b & !FREEZE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bcd_and_twelve_hours_are_decoded() {
        let t = decode([0x59, 0x30, 0x12, 0x29, 0x02, 0x24, 0x20], MODE_24H).unwrap();
        assert_eq!(t, DateTime { year: 2024, month: 2, day: 29, hour: 12, minute: 30, second: 59 });
        assert_eq!(t.unix(), 1_709_209_859);
        assert_eq!(decode([0, 0, 0x92, 1, 1, 0x70, 0], 0).unwrap().hour, 12);
        assert_eq!(decode([0, 0, 0x12, 1, 1, 0x70, 0x19], 0).unwrap().unix(), 0);
        assert_eq!(decode([0; 7], MODE_24H), None);
        assert_eq!(decode([0xff; 7], MODE_BINARY | MODE_24H), None);
    }

    #[test]
    fn dates_round_trip() {
        for s in (0..4_102_444_800).step_by(86_399 * 7) {
            assert_eq!(DateTime::from_unix(s).unix(), s);
        }
    }
}
