# Runs a server and sees to it that the server does not outlive whoever started this script.
#
#   sh -c "$(cat supervisor.sh)" supervisor HOME COMMAND...
#
# Prints the server's process id. The server is killed when a line arrives on stdin, and also
# when stdin closes, which it does however the starter ends, SIGKILL included; then HOME is
# removed too, for nobody is left to do it. Exits when the server has ended, by itself or not.

home=$1
shift
# Sent to a group with a stopped member when its starter ends; it would end this script first.
trap '' HUP
exec 3<&0

"$@" >>"$home/server.log" 2>&1 3<&- &
server=$!

{
    read -r _order <&3 || : >"$home/orphaned"
    kill -KILL "$server"
} >/dev/null &
guard=$!
exec 3<&-

echo "$server"
exec >/dev/null
wait "$server"
kill -KILL "$guard"
if [ -e "$home/orphaned" ]; then
    rm -rf "$home"
fi
