# SPDX-License-Identifier: MIT
# What README.md does with SmolLM2, with a tiny random model: train, get killed and go on, generate, evaluate.
include(${CMAKE_CURRENT_LIST_DIR}/run.cmake)
set(model ${MODELS}/session.gguf)
set(text ${CMAKE_CURRENT_LIST_DIR}/README.md)
set(train train --model ${model} --text ${text} --length 32 --rank 4 --threads 1 --rate 1e-2 --steps 150 --save-every 1)

string(TIMESTAMP begin "%s%f")
run(0 ${train} --out whole --method lora-pro)
string(TIMESTAMP end "%s%f")
math(EXPR third "(${end} - ${begin}) / 3000")  # milliseconds
math(EXPR seconds "${third} / 1000")
math(EXPR third "1000 + ${third} % 1000")
string(SUBSTRING ${third} 1 3 third)
set(third ${seconds}.${third})
expect("to train on")
expect("step 150  validation loss")
foreach(file checkpoint log.csv adapter/adapter_model.safetensors adapter-portable/adapter_config.json adapter.gguf loss.gp)
  if(NOT EXISTS ${FOLDER}/whole/${file})
    message(FATAL_ERROR "train must write ${file}")
  endif()
endforeach()
string(REGEX MATCHALL "validation loss [0-9.]+" losses "${printed}")
list(TRANSFORM losses REPLACE "validation loss " "")
list(GET losses 0 before)
list(GET losses -1 after)
if(NOT after LESS before)
  message(FATAL_ERROR "training must lower the validation loss, got ${before} and then ${after}")
endif()

# Killed (execute_process sends SIGKILL) wherever it happens to be, and resumed until it is through: the same bytes.
set(runs 0)
set(resumed 0)
set(status "killed")
while(NOT status EQUAL 0)
  set(how --overwrite)
  if(EXISTS ${FOLDER}/killed/checkpoint)
    set(how --resume)
    math(EXPR resumed "${resumed} + 1")
  endif()
  set(limit TIMEOUT ${third})
  if(runs GREATER_EQUAL 4)
    set(limit "")
  endif()
  execute_process(COMMAND ${PROGRAM} ${train} --out killed --method lora-pro ${how} WORKING_DIRECTORY ${FOLDER}
    ${limit} OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE status)
  math(EXPR runs "${runs} + 1")
  if(runs GREATER 6)
    message(FATAL_ERROR "a resumed run must come to an end, got ${status} and:\n${output}")
  endif()
endwhile()
foreach(file adapter/adapter_model.safetensors adapter/adapter_config.json adapter.gguf)
  same(whole/${file} killed/${file})
endforeach()
if(resumed EQUAL 0)
  message(FATAL_ERROR "no run was killed: of ${third} s each")
endif()

# Either file of the adapter says the same, and not what the bare model says.
foreach(adapter whole/adapter whole/adapter-portable whole/adapter.gguf)
  run(0 generate --model ${model} --adapter ${adapter} --prompt "LoRA" --tokens 8 --ids)
  list(APPEND continuations "${printed}")
endforeach()
list(REMOVE_DUPLICATES continuations)
list(LENGTH continuations count)
run(0 generate --model ${model} --prompt "LoRA" --tokens 8 --ids)
if(NOT count EQUAL 1 OR printed STREQUAL continuations)
  message(FATAL_ERROR "all files of the adapter must go on alike, and the bare model otherwise: ${continuations}, ${printed}")
endif()
run(0 generate --model ${model} --prompt "LoRA" --tokens 8 --temperature 0.8 --top-p 0.9 --seed 3)
run(0 generate --model ${model} --prompt "LoRA" --chat --tokens 4 --base bf16)

# What `train` saw last is what `evaluate` sees.
run(0 evaluate --model ${model} --adapter whole/adapter --text ${text} --length 32 --validation 0.1 --threads 1)
string(REGEX MATCH "loss ([0-9]+)\\.([0-9][0-9][0-9])" match "${printed}")
set(evaluated ${CMAKE_MATCH_1}${CMAKE_MATCH_2})
string(REGEX MATCH "([0-9]+)\\.([0-9][0-9][0-9])" match "${after}")
math(EXPR apart "${evaluated} - ${CMAKE_MATCH_1}${CMAKE_MATCH_2}")  # thousandths
if(apart GREATER 1 OR apart LESS -1)
  message(FATAL_ERROR "evaluate must find the loss that train printed last, ${after}, got:\n${printed}")
endif()

# Every method takes a step, from JSON lines too.
file(WRITE ${FOLDER}/examples.jsonl
"{\"prompt\": \"Who are you?\", \"completion\": \" A model.\"}
{\"prompt\": \"What is LoRA?\", \"completion\": \" A low-rank change.\"}
{\"prompt\": \"And PiSSA?\", \"completion\": \" A start.\"}
")
foreach(method lora lora+ rslora lora-ga pissa lora-pro-sgd lora-pro-efficient lora-pro-full lora-ga+pro)
  run(0 train --model ${model} --text examples.jsonl --length 32 --batch 1 --accumulate 2 --rank 2 --steps 2 --threads 1
    --validation 0.3 --targets q_proj,down_proj --gradient-batches 1 --recompute --method ${method} --out each/${method})
endforeach()
run(0 bench --model ${model} --sequences 1 --length 16 --steps 1)
expect("tokens_per_second")
