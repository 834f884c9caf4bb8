//! Terminal modes: the initial ones, and the coded line speeds.

use linux_uapi::raw::general as c;
use linux_uapi::tty::{NCCS, Termios2};

/// The value of a control character that is switched off (`_POSIX_VDISABLE`), also the mark of an end-of-file in the ring.
pub const DISABLED_CHAR: u8 = 0;

/// The coded speeds, in the order of their codes: `B0`…`B38400`, then `CBAUDEX | 1` (`B57600`) and on.
const SPEEDS: [u32; 31] = [
    0, 50, 75, 110, 134, 150, 200, 300, 600, 1200, 1800, 2400, 4800, 9600, 19200, 38400, 57600, 115200, 230400, 460800,
    500000, 576000, 921600, 1000000, 1152000, 1500000, 2000000, 2500000, 3000000, 3500000, 4000000,
];

/// Returns the modes that a new terminal has (Linux's `tty_std_termios`), at `speed` bits per second.
pub fn default_termios(speed: u32) -> Termios2 {
    let mut cc = [0; NCCS];
    for (index, value) in [
        (c::VINTR, 3),
        (c::VQUIT, 28),
        (c::VERASE, 127),
        (c::VKILL, 21),
        (c::VEOF, 4),
        (c::VMIN, 1),
        (c::VSTART, 17),
        (c::VSTOP, 19),
        (c::VSUSP, 26),
        (c::VREPRINT, 18),
        (c::VDISCARD, 15),
        (c::VWERASE, 23),
        (c::VLNEXT, 22),
    ] {
        cc[index as usize] = value;
    }
    Termios2 {
        iflag: c::ICRNL | c::IXON,
        oflag: c::OPOST | c::ONLCR,
        cflag: encode_speed(speed) | c::CS8 | c::CREAD | c::HUPCL,
        lflag: c::ISIG | c::ICANON | c::ECHO | c::ECHOE | c::ECHOK | c::ECHOCTL | c::ECHOKE | c::IEXTEN,
        line: 0,
        cc,
        ispeed: speed,
        ospeed: speed,
    }
}

/// Returns the `CBAUD` code for a speed, `BOTHER` when it has none.
pub fn encode_speed(speed: u32) -> u32 {
    match SPEEDS.iter().position(|&s| s == speed) {
        Some(index @ 0..=15) => index as u32,
        Some(index) => c::CBAUDEX | (index as u32 - 15),
        None => c::BOTHER,
    }
}

/// Returns the output and input speeds that `cflag` and the explicit speeds of a `struct termios2` mean.
pub fn speed_of(termios: &Termios2) -> (u32, u32) {
    let decode = |code: u32, explicit: u32| match code {
        c::BOTHER => explicit,
        code if code & c::CBAUDEX != 0 => SPEEDS.get((code & !c::CBAUDEX) as usize + 15).copied().unwrap_or(0),
        code => SPEEDS[code as usize & 15],
    };
    let output = decode(termios.cflag & c::CBAUD, termios.ospeed);
    let input = match (termios.cflag >> c::IBSHIFT) & c::CBAUD {
        0 => output,
        code => decode(code, termios.ispeed),
    };
    (output, input)
}

/// Completes modes that a program hands in: the speeds follow from `cflag` (`tty_termios_input_baud_rate`).
pub fn termios_from_user(mut termios: Termios2) -> Termios2 {
    let (output, input) = speed_of(&termios);
    termios.ospeed = output;
    termios.ispeed = input;
    termios
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_round_trip_through_their_codes() {
        for speed in SPEEDS {
            let t = default_termios(speed);
            assert_eq!(speed_of(&t), (speed, speed));
        }
        assert_eq!(encode_speed(38400), c::B38400);
        assert_eq!(encode_speed(115200), c::B115200);
        let mut odd = default_termios(31250);
        assert_eq!(odd.cflag & c::CBAUD, c::BOTHER);
        assert_eq!(speed_of(&odd), (31250, 31250));
        odd.cflag = odd.cflag & !c::CBAUD | c::B9600;
        assert_eq!(speed_of(&odd).0, 9600);
    }
}
