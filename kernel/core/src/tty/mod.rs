//! Terminals: line discipline, pseudo-terminals, serial console.
