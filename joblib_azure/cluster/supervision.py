"""What the start task does for warm runners, before the user's own lines: a shell script.

::

    start task (administrator) ──► <base>/                       for all users, as /tmp is (`joblib_azure.node.place`)
                               └─► <base>/requests/              only where there is systemd
                                   joblib-azure-requests.path    sees that a request is there
                                   joblib-azure-requests.service takes each request's owner and name, removes it
    a task (`joblib_azure.node.begin`) ──► <base>/requests/<key>
                                   joblib-azure@<uid>-<key>      runs <base>/<uid>/code/<key>/start as that user

What a task leaves running is not safe from Batch's clean-up; a service is, if it has nothing in Batch's folders, or the
service could not run the start task again. A request says nothing but its owner and its name, and its owner can start
nothing but what lies in a folder of its own, as itself: the folder of requests is open to all users of the node. Units
and program lie in ``/run``, where only the administrator writes, and are written anew at each start.

The script may run any number of times, and no failure of it is one of the node's: tasks then start supervisors
themselves, or work without. It must stay small, since the service refuses start tasks above 32,768 characters, and
has no single quotes, each of which quoting makes five.
"""

from __future__ import annotations

#: Ends what `prelude` returns: what follows is the user's.
MARK = "# joblib_azure: commandLine follows"

_SCRIPT = r"""(
umask 022
case $AZ_BATCH_NODE_ROOT_DIR in /*) ;; *) exit ;; esac
base=$(dirname "$(dirname "$AZ_BATCH_NODE_ROOT_DIR")")/joblib_azure
folder() { mkdir "$1" 2>/dev/null; [ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ] && chmod 1777 "$1"; }
without() { [ -z "$1" ] || echo "joblib_azure: no service for warm runners: $1" >&2; rm -rf "$base/requests"; exit; }
folder "$base" || { echo "joblib_azure: $base is not a folder of this user: no caches there" >&2; exit; }
units=@RUN@/systemd/system
[ -d $units ] && command -v systemctl >/dev/null || without
# An emulated node is no machine of its own: nothing is installed on the one that it is part of.
[ -z "$BATCH_EMULATOR_RUN_ID" ] || without
command -v setpriv >/dev/null || without "this image has no setpriv"
case $base in *[!A-Za-z0-9/._-]*) without "of the path $base" ;; esac
put() { cat >"$1.new" && mv "$1.new" "$1" || without "$1 cannot be written"; }
program=@RUN@/joblib_azure/supervise
mkdir -p ${program%/*}
put $program <<\END
LC_ALL=C base=$1
# uid, name: whether that user can have code of that name.
fits() {
    case $1 in "" | 0* | *[!0-9]*) return 1 ;; esac
    case $2 in *[!0-9a-f]*) return 1 ;; esac
    [ ${#2} -eq 16 ] && [ -d "$base/$1" ] && [ ! -L "$base/$1" ] && [ "$(stat -c %u "$base/$1")" = "$1" ]
}
if [ $# -eq 2 ]; then
    user=${2%%-*} name=${2#*-}
    fits "$user" "$name" && group=$(id -g "$user") || exit 1
    exec setpriv --reuid="$user" --regid="$group" --init-groups /bin/sh "$base/$user/code/$name/start"
fi
for request in "$base"/requests/* "$base"/requests/.[!.]* "$base"/requests/..?*; do
    # A link to a file of somebody else would lend his name.
    set -- $(stat -c "%u %h %f" "$request" 2>/dev/null)
    [ $# -eq 3 ] || continue
    rm -rf "$request"
    name=${request##*/}
    case "$2 $3" in "1 8"???) fits "$1" "$name" ;; *) false ;; esac &&
        systemctl start --no-block "joblib-azure@$1-$name.service" || echo "a request of user $1 was in vain" >&2
done
END
put $units/joblib-azure@.service <<END
[Unit]
Description=joblib_azure: warm runners, user and code %i
StartLimitIntervalSec=0
CollectMode=inactive-or-failed
[Service]
ExecStart=/bin/sh $program $base %i
KillMode=control-group
TimeoutStopSec=2
OOMPolicy=continue
LimitNICE=+0
LimitNOFILE=65536
TasksMax=infinity
END
put $units/joblib-azure-requests.service <<END
[Unit]
Description=joblib_azure: start what tasks ask for
StartLimitIntervalSec=10
StartLimitBurst=500
[Service]
Type=oneshot
ExecStart=/bin/sh $program $base
END
put $units/joblib-azure-requests.path <<END
[Unit]
Description=joblib_azure: tasks ask for warm runners
[Path]
DirectoryNotEmpty=$base/requests
END
folder "$base/requests" && timeout 60 systemctl daemon-reload &&
    timeout 60 systemctl restart joblib-azure-requests.path || without "systemd does not start it"
) || :
"""


def script(run: str = "/run") -> str:
    """Return the script.

    Parameters
    ----------
    run : str
        The folder of what does not outlive the machine's start; another one for tests.
    """
    return _SCRIPT.replace("@RUN@", run)


def prelude() -> str:
    """Return what a start task begins with where there are to be warm runners; its last line is `MARK`."""
    return script() + MARK


def without_prelude(text: str) -> str:
    """Return what follows `prelude`, of whatever version of the package; all, where there is none."""
    before, mark, after = text.partition(f"{MARK}\n")
    return after if mark else before
