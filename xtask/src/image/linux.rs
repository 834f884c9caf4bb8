//! Debian's own kernel, to run the same image beside Ursa.
