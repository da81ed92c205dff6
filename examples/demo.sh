#!/bin/sh
# Ask the shipped checkpoint about the example pictures: sh examples/demo.sh [PATH/TO/fastvlm]
# The questions stand in demo.tsv beside this file: picture <TAB> question, one a line; # begins a remark.
set -eu
fastvlm=${1:-fastvlm}
here=$(dirname "$0")
tab=$(printf '\t')

while IFS="$tab" read -r picture question || [ -n "$picture" ]; do
    case $picture in
    '' | '#'*) continue ;;
    esac
    printf '\n$ fastvlm ask examples/%s "%s"\n' "$picture" "$question"
    # stdin is the table: without /dev/null the command could read from it
    "$fastvlm" ask "$here/$picture" "$question" </dev/null
done <"$here/demo.tsv"

printf '\nMore: fastvlm ask --help, or fastvlm chat examples/...\n'
