#!/bin/sh
# Opens the session that was chosen at the greeter: its command is in the arguments.
. /usr/lib/ursa/services/environment.sh
use_kde
exec /etc/sddm/wayland-session "$@"
