#!/bin/sh
# Ask the shipped checkpoint about the example images: sh examples/demo.sh [PATH/TO/fastvlm]
# The questions are in demo.tsv beside this file: image <TAB> question <TAB> right answer, which is for the tests only.
set -eu
fastvlm=${1:-fastvlm}
here=$(dirname "$0")
tab=$(printf '\t')

echo 'The model is fastvlm-mini, which was trained on drawings only. For photographs use a published checkpoint.'
while IFS="$tab" read -r image question _ || [ -n "$image" ]; do
    case $image in
    '' | '#'*) continue ;;
    esac
    printf '\n$ fastvlm ask examples/%s "%s"\n' "$image" "$question"
    # stdin is the table: without /dev/null the command could read from it
    "$fastvlm" ask "$here/$image" "$question" </dev/null
done <"$here/demo.tsv"

printf '\nMore: fastvlm ask --help, or fastvlm chat examples/...\n'
