//! Readiness: poll, select and epoll.
