#!/bin/sh
# Runs a compiler as given and passes on what it says. Where ptxas makes each product of a warpgroup wait for the one
# before (C7508 and its kin), it says so in passing and goes on: here that is an error.
words=$("$@" 2>&1)
code=$?
if [ -n "$words" ]; then printf '%s\n' "$words"; fi
case "$words" in
  *C75[0-9][0-9]* | *"instructions are serialized"*)
    echo "compile.sh: products of a warpgroup are made one after the other" >&2
    exit 1
    ;;
esac
exit $code
