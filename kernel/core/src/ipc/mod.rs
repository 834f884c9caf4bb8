//! Pipes and the descriptors that wake: eventfd, timerfd, signalfd, inotify.
