#!/bin/bash
# Starts a run, or goes on with it, and says how it came out:
#
#     bash launch.sh RUN COMMAND...      RUN: its --out; COMMAND: torchrun with what follows it, or
#                                        srun, torchrun and what follows
#
# In: SIGTERM, SIGINT, SIGHUP or SIGUSR1, which ask the run to save and end. Out, the exit code:
#     0    all steps are done
#     75   they are not: the run was stopped, or killed after it had saved something; started again it
#          goes on. If AGAIN is set, it is run as a command then (SLURM: scontrol requeue)
#     else the run failed, or could not begin, and would fail again: the code of COMMAND
#
# The one idea: torchrun ends with 1 whether a run has saved or failed. RUN/status.json knows better.
#
# Signals are passed on as SIGUSR1: srun forwards that one, but answers SIGTERM by killing the step.
# torchrun's options for it are set here by its own variables; it waits an hour for a save unless
# PET_SHUTDOWN_TIMEOUT says otherwise, where the scheduler does not kill earlier.
set -u
run=$1
shift
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-3600}

content() { cat "$run/$1" 2>/dev/null; }
status() { content status.json | sed -n 's/^ *"status": "\([a-z]*\)".*/\1/p'; }

before=$(content status.json)
saved=$(content last)

asked="" child=""
trap 'asked=yes; [ -z "$child" ] || kill -USR1 "$child" 2>/dev/null' TERM INT HUP USR1
"$@" &
child=$!
[ -z "$asked" ] || kill -USR1 "$child" 2>/dev/null
# Not `wait` alone: a signal that comes just before it begins would be heard when it ends.
while kill -0 "$child" 2>/dev/null; do sleep 0.2; done
wait "$child"
code=$?

# Another machine may have written how it came out, and file systems of several pass that on late.
for _ in $(seq 60); do
    [ "$code" = 0 ] && [ "$(status)" != "done" ] && [ "$(status)" != "stopped" ] || break
    sleep 1
done

if [ "$(content status.json)" = "$before" ]; then
    outcome=${asked:+stopped} # it never came to its first step
elif [ "$(status)" = running ]; then # killed with no time to say so
    outcome=stopped
    [ "$(content last)" != "$saved" ] || outcome=failed # and would be for ever
else
    outcome=$(status)
fi
case $outcome in
done) exit 0 ;;
stopped)
    ${AGAIN:-}
    exit 75
    ;;
*) exit $((code ? code : 1)) ;;
esac
