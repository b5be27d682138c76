#!/usr/bin/env bash
# The lte program from the outside: what the README says, kill -9, impossible requests, a suite.
# usage: cli_test.sh PATH/TO/lte     One line a check; the exit code is 1 if any failed.
set -uo pipefail
[ $# -eq 1 ] || { echo "usage: $0 PATH/TO/lte"; exit 2; }
lte=$(realpath "$1")
dir=$(mktemp -d)
cleanup() {
  mountpoint -q "$dir/full" 2> /dev/null && umount "$dir/full"
  rm -rf "$dir"
}
trap cleanup EXIT
cd "$dir" || exit 2
failed=0 passed=0 skipped=0

pass() { echo "ok    $*"; passed=$((passed + 1)); }
skip() { echo "SKIP  $*"; skipped=$((skipped + 1)); }
fail() {
  echo "FAIL  $*"
  failed=$((failed + 1))
  [ -s err ] && tail -n 4 err | sed 's/^/        stderr: /'
}
# check WHAT COMMAND...: the command succeeds.
check() {
  local what=$1
  shift
  if "$@" > out 2> err; then pass "$what"; else fail "$what (exit $?: ${*:0:9})"; fi
}
# refuse WHAT TEXT COMMAND...: exits with 1, says TEXT in exactly one line, leaves no run in refused/.
refuse() {
  local what=$1 text=$2 code lines
  shift 2
  rm -rf refused
  "$@" > out 2> err
  code=$?
  lines=$(wc -l < err)
  if [ "$code" -ne 1 ]; then
    fail "refuse $what: exit code $code"
  elif [ -e refused/run.json ]; then
    fail "refuse $what: left a run.json"
  elif ! grep -qF -- "$text" err; then
    fail "refuse $what: does not say '$text'"
  elif [ "$lines" -ne 1 ]; then
    fail "refuse $what: $lines lines on standard error"
  else
    pass "refuse $what"
  fi
}
# json WHAT FILE PATH KEY...: FILE is JSON, and every value at PATH (as in jq) has every KEY.
json() {
  local what=$1 file=$2 path=$3
  shift 3
  : > err
  if command -v jq > /dev/null; then
    # shellcheck disable=SC2016  # the dollars are jq's
    check "$what" jq -e "[$path"' | . as $o | $ARGS.positional[] | . as $k | $o | has($k)] | length > 0 and all' \
      "$file" --args "$@"
  elif command -v python3 > /dev/null; then
    check "$what" python3 -c '
import json, sys
nodes = [json.load(open(sys.argv[1]))]
for part in filter(None, sys.argv[2].split(".")):
    name = part.replace("[]", "")
    nodes = [n[name] for n in nodes] if name else nodes
    nodes = [m for n in nodes for m in n] if part.endswith("[]") else nodes
sys.exit(not nodes or not all(k in n for n in nodes for k in sys.argv[3:]))' "$file" "$path" "$@"
  else
    skip "$what: neither jq nor python3"
  fi
}
# kill_when WHAT COMMAND...: starts the command in a process of its own, kill -9 as soon as `ready` holds.
kill_when() {
  local what=$1 pid
  shift
  "$@" > out 2> err &
  pid=$!
  for ((i = 0; i < 2000; ++i)); do
    ready && break
    sleep 0.01
  done
  kill -9 "$pid" 2> /dev/null
  wait "$pid" 2> /dev/null
  if [ $? -eq 137 ]; then pass "$what"; else fail "$what: ended before it was killed"; fi
}

# ---- a text of several kB
words=(the sea König über naïve café was and small Ωmega river stone → walks slowly night 木)
state=7
for ((line = 0; line < 220; ++line)); do
  text=""
  for ((w = 0; w < 6; ++w)); do
    state=$(((state * 1103515245 + 12345) % 2147483648))
    text+="${words[(state / 65536) % ${#words[@]}]} "
  done
  echo "${text% }."
done > my.txt

# ---- the README's lines
train=("$lte" train --model gpt2-nano --data text:my.txt --steps 40 --batch 8)
fit=("$lte" fit --method lte --from runs/base --set eta=0.5 --set steps=40 --set batch=8)
check "train" "${train[@]}" --out runs/base
check "fit" "${fit[@]}" --out runs/lte
check "eval" "$lte" eval --run runs/lte --json
cp out eval.json
check "generate" "$lte" generate --run runs/lte --prompt "the" --tokens 30
cp out greedy
check "generate begins with its prompt" grep -q '^the' greedy
for file in model.safetensors tokenizer.json run.json log.jsonl; do
  check "a run folder has $file" test -s "runs/lte/$file"
done
check "no checkpoint is left" test -z "$(find runs -name 'stage-*' -o -name '*.tmp*')"
json "log.jsonl" runs/lte/log.jsonl . stage step loss efficiency separability active crossings eta lambda lr
json "run.json" runs/lte/run.json . format model vocab weights_sha256 plan run

# ---- --json
json "eval --json" eval.json . name protocol trials status why seed quality active cost dense_cost time \
  training machine
json "eval --json: quality" eval.json .quality loss token_ppl byte_ppl word_ppl scored_tokens window stride \
  text_sha256 excess_over_source rouge_l_coco slot_error bleu_e2e exact_match reference_loss checked_loss digest
json "eval --json: active" eval.json .active mean p50 p99 layers union context
json "eval --json: cost" eval.json .cost flops_paper flops_full bytes
json "eval --json: time" eval.json .time prefill decode prefill_x_dense decode_x_dense digest_ok
check "timed eval" "$lte" eval --run runs/lte --repetitions 2 --time-windows 1 --json
cp out timed.json
json "eval --json: decode" timed.json .time.decode us_per_token mad repetitions
check "info" "$lte" info --json
cp out info.json
json "info --json" info.json . methods datasets models backends machine
json "info --json: methods" info.json '.methods[]' name about source knobs
json "info --json: machine" info.json .machine cpu cores threads compiler flags revision date
check "data" "$lte" data text:my.txt --json
cp out data.json
json "data --json" data.json . name sha256 tokenizer vocab train_tokens valid_tokens test_tokens window
check "data, the list" "$lte" data --json
cp out list.json
json "data --json: the list" list.json '.[]' name tokenizer about
check "data sums" "$lte" data sums --samples 3
cp out samples
check "samples are whole documents" grep -qE '^sample 3: .+[=:?] [a-z0-9 -]+$' samples
check "train on sums" "$lte" train --data sums --steps 20 --batch 4 --out sums
check "eval on sums" "$lte" eval --run sums
cp out sums.txt
check "exact match is shown" grep -qE '^task  +exact match [01]\.[0-9]{4}$' sums.txt
refuse "e2e without its files" "run \`make data\`" env -u LTE_DATA_MIRROR "$lte" data e2e --cache nowhere
mkdir -p results
cat > results/claims.toml << 'TOML'
[[claim]]
id = "c"
statement = "So it is."
kind = "better"
better = { method = "lte" }
than = { method = "dense" }
TOML
check "claims" "$lte" claims --results results --json
cp out claims.json
json "claims --json" claims.json '.[]' id statement expected measured verdict
check "every command explains itself" bash -c \
  "for c in data train fit eval generate run report claims info; do '$lte' \$c --help | grep -q . || exit 1; done"

# ---- the same bits
same() { check "$1" cmp "$2/model.safetensors" "$3/model.safetensors"; }
for threads in 1 7; do
  check "train on $threads threads" "${train[@]}" --threads $threads --out "t$threads"
  same "train on $threads threads gives the same bits" runs/base "t$threads"
  check "fit on $threads threads" "${fit[@]}" --threads $threads --out "f$threads"
  same "fit on $threads threads gives the same bits" runs/lte "f$threads"
done
check "generate on 7 threads" "$lte" generate --run f7 --prompt "the" --tokens 30 --threads 7
cp out again
check "gives the same text" cmp again greedy

# ---- kill -9
ready() { [ -e killed/log.jsonl ] && [ "$(wc -l < killed/log.jsonl)" -ge 8 ]; }
kill_when "kill -9 in train" "${train[@]}" --out killed
check "a killed train is no run" test ! -e killed/run.json
refuse "eval of a killed run" "not a finished run" "$lte" eval --run killed
check "train again" "${train[@]}" --out killed
same "a killed train ends at the same bits" runs/base killed
rm -rf killed
ready() { grep -q stage2 killed/log.jsonl 2> /dev/null; }
kill_when "kill -9 in fit" "${fit[@]}" --out killed
check "a killed fit has its first stage" test -s killed/stage-stage1.safetensors
before=$(grep -c stage1 killed/log.jsonl)
check "fit again" "${fit[@]}" --out killed
same "a killed fit ends at the same bits" runs/lte killed
check "stage 1 was not run again" test "$(grep -c stage1 killed/log.jsonl)" -eq "$before"
check "no checkpoint is left" test -z "$(find killed -name 'stage-*')"

# ---- impossible requests
to=(--steps 5 --out refused)
: > empty.txt
printf 'abc' > three.txt
printf 'latin \xe9%.0s' {1..50} > latin.txt
refuse "an unknown model" "known: gpt2-nano" "$lte" train --model gpt5 --data text:my.txt "${to[@]}"
refuse "an unknown model key" "known: act" "$lte" train --model gpt2-nano:size=1 --data text:my.txt "${to[@]}"
refuse "an unknown dataset" "known are" "$lte" train --data novels "${to[@]}"
refuse "an empty text" "empty" "$lte" train --data text:empty.txt "${to[@]}"
refuse "a text of 3 tokens" "only 3 tokens" "$lte" train --data text:three.txt "${to[@]}"
refuse "a text that is not UTF-8" "is not UTF-8 at byte 6" "$lte" train --data text:latin.txt "${to[@]}"
refuse "a missing text" "none.txt" "$lte" train --data text:none.txt "${to[@]}"
refuse "no steps" "--steps" "$lte" train --data text:my.txt --steps 0 --out refused
refuse "a negative learning rate" "--lr" "$lte" train --data text:my.txt --lr=-1 "${to[@]}"
refuse "a negative length" "--seq" "$lte" train --data text:my.txt --seq=-3 "${to[@]}"
refuse "sequences longer than the model" "256" "$lte" train --data text:my.txt --seq 257 "${to[@]}"
refuse "a place below a file" "Not a directory" "$lte" train --data text:my.txt --steps 5 --out my.txt/run
refuse "a finished run's place" "finished run" "$lte" train --data text:my.txt --steps 5 --out runs/base
from=(--from runs/base --out refused --set steps=4)
refuse "an unknown method" "known: dense" "$lte" fit --method magic "${from[@]}"
refuse "an unknown knob" "known: steps" "$lte" fit --method lte "${from[@]}" --set width=2
refuse "active=1.5" "active=1.5" "$lte" fit --method lte-one-stage "${from[@]}" --set active=1.5
refuse "active=0" "active=0" "$lte" fit --method lte-one-stage "${from[@]}" --set active=0
refuse "a negative number of threads" "--threads" "$lte" fit --method lte "${from[@]}" --threads=-3
refuse "a knob that is no number" "eta=x" "$lte" fit --method lte "${from[@]}" --set eta=x
refuse "a group that does not divide" "group=7" "$lte" fit --method lte "${from[@]}" --set group=7
refuse "fitting to longer sequences" "seq=500" "$lte" fit --method lte "${from[@]}" --set seq=500
refuse "half a knob" "knob=value" "$lte" fit --method lte "${from[@]}" --set group
refuse "a fit on a fit" "fit itself" "$lte" fit --method lte --from runs/lte --out refused
refuse "a fit on nothing" "not a finished run" "$lte" fit --method lte --from nowhere --out refused
refuse "an unknown backend" "known: cpu" "$lte" eval --run runs/lte --backend abacus
refuse "an unknown variant" "unknown variant" "$lte" eval --run runs/lte --backend cpu+fast
refuse "an empty prompt" "--prompt" "$lte" generate --run runs/lte --prompt ""
refuse "a character that no text had" "U+65E5" "$lte" generate --run runs/lte --prompt "日"
refuse "a prompt that is not UTF-8" "UTF-8" "$lte" generate --run runs/lte --prompt $'\xff'
refuse "a missing suite" "none.toml" "$lte" run none.toml
refuse "a report of nothing" "no records" "$lte" report --results nowhere
cp -r runs/base cut
head -c 3000 runs/base/model.safetensors > cut/model.safetensors
refuse "truncated weights" "cut/model.safetensors" "$lte" eval --run cut
head -c 300 runs/base/run.json > cut/run.json
refuse "a truncated run.json" "cut/run.json" "$lte" eval --run cut
cp my.txt changed.txt
check "train on a text that will change" "$lte" train --data text:changed.txt --steps 3 --out changed
echo "the end." >> changed.txt
refuse "eval on a changed text" "has changed" "$lte" eval --run changed
refuse "fit on a changed text" "has changed" "$lte" fit --from changed --out refused
check "eval on a changed text that is named" "$lte" eval --run changed --data text:changed.txt
refuse "a learning rate that is no number" "finite" "$lte" train --data text:my.txt --lr nan --out refused
refuse "an infinite weight decay" "finite" "$lte" train --data text:my.txt --decay inf --out refused
refuse "a knob that is no number" "lr=nan" "$lte" fit --from runs/base --set lr=nan --out refused
refuse "JSON of a command that has none" "has no --json" "$lte" train --data text:my.txt --json --out refused
check "a subcommand's help has examples" grep -q '^  lte fit --method lte' <("$lte" fit --help)
"$lte" train --data text:my.txt --stepz 5 --out refused > out 2> err
check "an unknown option is named, exit 1" test "$? $(grep -c stepz err)" = "1 1"

# ---- a full disk
mkdir -p refused full
ln -s /dev/full full/log.jsonl
"$lte" train --data text:my.txt --steps 5 --out full > out 2> err
check "a log that cannot grow ends training" test "$? $(grep -c 'No space left' err)" = "1 1"
check "and leaves no run" test ! -e full/run.json
rm -r full && mkdir full
if mount -t tmpfs -o size=400k tmpfs full 2> /dev/null; then
  "$lte" train --data text:my.txt --steps 5 --out full/run > out 2> err
  check "a full disk ends training" test "$? $(grep -c 'No space left' err)" = "1 1"
  check "and leaves no run and no rest" test -z "$(find full -name run.json -o -name '*.tmp*')"
  umount full
else
  skip "a full disk: cannot mount a tmpfs here"
fi
"$lte" info > /dev/full 2> err
check "standard output that cannot be written is an error" test "$? $(wc -l < err)" = "1 1"

# ---- suites
base='[[base]]
id = "b"
model = "gpt2-nano"
dataset = "text:my.txt"
steps = 10
batch = 8'
cat > tiny.toml << TOML
suite = "tiny"
score_windows = 4
time_windows = 1
repetitions = 2
$base
[[experiment]]
base = "b"
method = "dense"
protocol = "paper"
[[experiment]]
base = "b"
method = "lte"
knobs = { steps = 20, batch = 8 }
sweep = { eta = ["0.3", "1"] }
[[experiment]]
base = "b"
method = "prune"
knobs = { active = "0.5", calibration = 256 }
TOML
names() { sed 's/^{"name":"\([^"]*\)".*/\1/' "$1/records.jsonl" | sort; }
digests() {
  sed 's/^{"name":"\([^"]*\)".*"digest":"\([^"]*\)".*/\1 \2/' "$@" | sort
}
ready() { grep -q stage2 work/lte-*/log.jsonl 2> /dev/null; }
kill_when "kill -9 in a suite" "$lte" run tiny.toml --work work --results res
check "run the suite again" "$lte" run tiny.toml --work work --results res
tail -n 1 out > last
check "it skipped what was finished" test "$(grep -c 'done before' err)" -ge 2
check "and ran the rest" grep -Eq '^tiny: [1-4] stages run, [2-5] done before, 0 records failed' last
check "four records, each once" test "$(names res | uniq | wc -l) $(names res | wc -l)" = "4 4"
cp res/records.jsonl records
cp results/claims.toml res/claims.toml
check "run it a third time" "$lte" run tiny.toml --work work --results res
tail -n 1 out > last
cp out third
check "a claim that it cannot decide is counted" grep -q "^not run for want of records: 1 of 1 claims" third
check "all was done before" grep -q '^tiny: 0 stages run, 6 done before, 0 records failed' last
check "and nothing was appended" cmp records res/records.jsonl
check "the report is there" test -s res/README.md -a -s res/report.html
check "shard 0 of 2" "$lte" run tiny.toml --work w0 --results s0 --shard 0/2
check "shard 1 of 2" "$lte" run tiny.toml --work w1 --results s1 --shard 1/2
digests res/records.jsonl > whole
digests s0/records.jsonl s1/records.jsonl > parts
check "two shards give the same records as one" cmp whole parts
for n in 1 3; do
  check "fits of $n threads" "$lte" run tiny.toml --work "t$n" --results "r$n" --threads "$n"
  digests "r$n/records.jsonl" > parts
  check "give the same records" cmp whole parts
done
rm -r t3/dense-*
for folder in t3/prune-*; do rm -r "$folder" && echo > "$folder"; done
"$lte" run tiny.toml --work t3 --results r4 --threads 3 > out 2> err
check "a folder that is a file stops the suite" test "$? $(tail -n 1 err | grep -c 'prune-.*made')" = "1 1"
check "the other fits went on to their ends" grep -q protocol t3/dense-*/record-*.json
refuse "shard 3/2" "3/2" "$lte" run tiny.toml --shard 3/2
refuse "shard x" "i/n" "$lte" run tiny.toml --shard x
sed 's/^steps/stps/' tiny.toml > bad.toml
refuse "a suite with an unknown key" "bad.toml:9: unknown key 'stps'" "$lte" run bad.toml --work bad
echo '[[experiment' > bad.toml
refuse "a malformed suite" "bad.toml:1" "$lte" run bad.toml --work bad
sed 's/knobs = .*/knobs = { steps = "many" }/' tiny.toml > bad.toml
refuse "a suite whose knob is no number" "many" "$lte" run bad.toml --work bad --results bad

# Knobs that are set to their default make another name, hence another record.
cat > named.toml << TOML
suite = "named"
score_windows = 2
time_windows = 1
$base
[[experiment]]
base = "b"
method = "dense"
[[experiment]]
base = "b"
method = "dense"
knobs = { steps = 0 }
TOML
check "a suite that names a default" "$lte" run named.toml --work work --results named
check "every experiment has its record" test "$(names named | uniq | wc -l)" -eq 2

# A model that diverged is a record, not the end of all others.
sed 's/^steps.*/steps = 3\nlr = 10/; s/"named"/"wild"/' named.toml > wild.toml
"$lte" run wild.toml --work work --results wild > out 2> err
check "a diverged model is recorded" test -s wild/records.jsonl
check "and the report can be made" "$lte" report --results wild

# Two result files held against each other: 0 as fast, 1 slower, 2 not comparable.
timings() {
  local list="" n
  for n in 1 2 3 4 5 6 7 8 9; do
    list+="${list:+,}{\"run_name\": \"$1\", \"name\": \"$1\", \"run_type\": \"iteration\", \"real_time\": $2.$n, \"time_unit\": \"us\"}"
  done
  echo "{\"context\": {\"cpu\": \"X\", \"threads\": \"2\"}, \"benchmarks\": [$list]}"
}
timings row 100 > same.json
timings row 150 > slow.json
timings other 100 > other.json
for pair in "same same 0" "same slow 1" "slow same 0" "same other 2" "same none 2"; do
  read -r a b code <<< "$pair"
  "$lte" compare "$a.json" "$b.json" > out 2> err
  check "compare $a $b ends with $code" test $? -eq "$code"
done
"$lte" bench-step --model gpt2-nano --batch 1 --seq 16 --steps 1 --rounds 1 --profile > steps.txt 2> err
check "bench-step says where time goes" grep -q "gemm" steps.txt
"$lte" info --ceilings > ceilings.txt 2> err
check "info measures ceilings of reading and of products" test "$(grep -c "^ceiling .*G[BF]" ceilings.txt)" -ge 4

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
