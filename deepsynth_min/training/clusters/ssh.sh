#!/bin/bash
# Machines that SSH reaches, without a scheduler:
#
#     bash ssh.sh run.toml /shared/runs/papers node0 node1      beside launch.sh, whose exit codes it
#                                        has: 0 done, 75 stopped (start it again), else failed
#
# This folder, the run and Python lie in the same places on all machines; they let you in without a
# password, and the others find the first by the name given here. Ctrl-C, SIGTERM or the end of your
# terminal asks all of them to save and end; a connection that breaks does not, since what a machine
# prints goes into RUN.MACHINE.log.
set -u
config=$1 run=$2
shift 2
machines=("$@")
mkdir -p "$(dirname "$run")"
torchrun=$(command -v torchrun)

on() { ssh -n -o BatchMode=yes "$1" "cd '$PWD' && $2"; }
stop() {
    for machine in "${machines[@]}"; do
        on "$machine" "kill -USR1 \$(cat '$run.$machine.pid')" &
    done
}
trap stop TERM INT HUP USR1

children=()
for machine in "${machines[@]}"; do
    rm -f "$run.$machine.pid" # of an earlier start: the number may be another process's by now
    on "$machine" "echo \$\$ >'$run.$machine.pid' && exec >>'$run.$machine.log' 2>&1 &&
        exec bash launch.sh '$run' '$torchrun' --nnodes $# --nproc-per-node gpu \
        --rdzv-backend c10d --rdzv-endpoint '${machines[0]}:29500' --rdzv-id '$(basename "$run")' \
        --max-restarts 3 -m deepsynth_min.train --config '$config' --out '$run' --resume auto" &
    children+=($!)
    echo "$machine: $run.$machine.log"
done

outcome=0
for child in "${children[@]}"; do
    while kill -0 "$child" 2>/dev/null; do sleep 0.2; done # as in launch.sh
    wait "$child"
    code=$?
    case $code in
    0) ;;
    75) [ $outcome != 0 ] || outcome=75 ;;
    *) outcome=$code ;;
    esac
done
exit $outcome
