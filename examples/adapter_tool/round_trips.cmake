# SPDX-License-Identifier: MIT
# Files that go through several commands and must come out the same.
include(${CMAKE_CURRENT_LIST_DIR}/run.cmake)

# What the last command printed.
function(says text)
  string(FIND "${printed}" "${text}" position)
  if(position EQUAL -1)
    message(FATAL_ERROR "expected '${text}', got:\n${printed}")
  endif()
endfunction()

# PEFT's patterns of ranks and alphas, llama.cpp's order of rows: nothing is lost on the way, and nothing rounded.
run(0 convert llama_adapter adapter.gguf --config llama)
run(0 convert adapter.gguf back --config llama/config.json)
run(0 convert back portable --portable)
run(0 convert portable narrow --type bf16)  # eighths have few enough bits
run(0 convert narrow half.gguf --config llama --type f16)
foreach(adapter back portable narrow)
  run(0 diff llama_adapter ${adapter} --tolerance 0)
endforeach()
run(0 diff llama_adapter half.gguf --tolerance 0 --config llama)
run(0 diff adapter.gguf half.gguf)
run(0 convert gpt2_adapter gpt2.gguf --config gpt2)
run(0 diff gpt2_adapter gpt2.gguf --tolerance 0)

# Merged weights are known to the bit, in F32, F16 and BF16 and either way round, from whichever file they come; so is
# all that stands around them.
foreach(adapter llama_adapter adapter.gguf portable narrow half.gguf)
  run(0 merge ${adapter} llama/model.safetensors merged.safetensors --config llama)
  same(merged.safetensors llama_merged.safetensors)
endforeach()
foreach(adapter gpt2_adapter gpt2.gguf)
  run(0 merge ${adapter} gpt2/model.safetensors merged.safetensors)
  same(merged.safetensors gpt2_merged.safetensors)
endforeach()
run(0 merge llama_adapter llama/model.safetensors merged.safetensors --scale 0)
same(merged.safetensors llama/model.safetensors)
# In several files; an empty folder may stand in the place of the new one.
file(MAKE_DIRECTORY ${FOLDER}/parts)
run(0 merge llama_adapter llama_parts parts/)
says("parts/: 6 weights merged, the other 5 tensors as before, in 2 files and an index")
run(0 merge llama_adapter llama_parts same --scale 0)
foreach(file model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json)
  same(parts/${file} llama_parts_merged/${file})
  same(same/${file} llama_parts/${file})
endforeach()
# In place, and back again.
run(0 merge gpt2_adapter gpt2/model.safetensors gpt2/model.safetensors)
same(gpt2/model.safetensors gpt2_merged.safetensors)
run(0 merge gpt2_adapter gpt2/model.safetensors gpt2/model.safetensors --scale -1)
foreach(option "" --fan-in-fan-out)  # the blocks tell without it
  run(0 extract gpt2/model.safetensors gpt2_merged.safetensors again --rank 2 --prefix transformer. ${option})
  run(0 diff gpt2_adapter again)
  run(0 check again --model gpt2)
  run(0 inspect again)
  says("fan_in_fan_out")
endforeach()

# Which way round a weight lies: by its shape, or by those of its block, or by its name with the flag of the config.
function(turn_flag adapter from to)
  file(READ ${FOLDER}/${adapter}/adapter_config.json config)
  string(REPLACE "${from}" "${to}" turned "${config}")
  if(turned STREQUAL config)
    message(FATAL_ERROR "${adapter}: no ${from} to turn")
  endif()
  file(WRITE ${FOLDER}/${adapter}/adapter_config.json "${turned}")
endfunction()
set(flag "\"fan_in_fan_out\": ")
turn_flag(gpt2_adapter "${flag}true" "${flag}false")
run(0 check gpt2_adapter --model gpt2)
says("2 matched, 0 missing, 0 unexpected, 0 of a wrong shape")
run(0 merge gpt2_adapter gpt2/model.safetensors merged.safetensors)
run(0 merge gpt2_adapter gpt2_merged.safetensors back.safetensors --scale -1)
same(merged.safetensors gpt2_merged.safetensors)
same(back.safetensors gpt2/model.safetensors)
turn_flag(gpt2_adapter "${flag}false" "${flag}true")
run(0 merge gpt2_square/adapter gpt2_square/model.safetensors merged.safetensors)
same(merged.safetensors gpt2_square/merged.safetensors)
run(0 extract gpt2_square/model.safetensors gpt2_square/merged.safetensors square --rank 2 --fan-in-fan-out
  --prefix transformer.)
run(0 diff gpt2_square/adapter square)
run(0 extract llama/model.safetensors llama_merged.safetensors oblong --rank 1 --target k_proj,down_proj)
run(0 merge oblong llama/model.safetensors merged.safetensors)
turn_flag(oblong "${flag}false" "${flag}true")
run(0 merge oblong llama/model.safetensors turned.safetensors)
same(merged.safetensors turned.safetensors)

# What was merged comes out again: of full rank, by a threshold, and less of it where the rank is too small.
run(0 extract llama/model.safetensors llama_merged.safetensors whole --rank 4)
run(0 diff llama_adapter whole --tolerance 1e-5)
run(0 extract llama/model.safetensors llama_merged.safetensors most --energy 0.99)
run(0 diff llama_adapter most --tolerance 0.1001)  # the root of what may be missing
run(0 extract llama/model.safetensors llama_merged.safetensors least --rank 1 --target q_proj,layers.1.mlp.down_proj)
says("3 layers")
says("3 other tensors changed, not in the adapter: model.layers.0.mlp")
run(1 diff llama_adapter least)

# Norms beyond all numbers are not the same, whatever they subtract to.
file(READ ${FOLDER}/gpt2_adapter/adapter_config.json config)
string(REGEX REPLACE "\"lora_alpha\": [0-9.]+" "\"lora_alpha\": 1e308" large "${config}")
file(COPY ${FOLDER}/gpt2_adapter DESTINATION ${FOLDER}/large)
file(WRITE ${FOLDER}/large/gpt2_adapter/adapter_config.json "${large}")
run(1 diff large/gpt2_adapter large/gpt2_adapter)

# A match, and each way not to.
run(0 check llama_adapter)
run(0 check llama_adapter --model llama)
run(0 check adapter.gguf --model llama/model.safetensors)
says("6 matched, 0 missing, 0 unexpected, 0 of a wrong shape")
run(1 check llama_adapter --model gpt2)
says("0 matched, 0 missing, 6 unexpected, 0 of a wrong shape\nunexpected: \"model.layers.0.mlp.down_proj\", ")
file(READ ${FOLDER}/gpt2_adapter/adapter_config.json config)
string(REPLACE "c_proj" "c_fc" other "${config}")
file(WRITE ${FOLDER}/gpt2_adapter/adapter_config.json "${other}")
run(1 check gpt2_adapter --model gpt2)
says("1 not among the targets, PEFT drops them: transformer.h.0.attn.c_proj")
file(WRITE ${FOLDER}/least/adapter_config.json [[{"peft_type": "LORA", "r": 1, "lora_alpha": 1,
  "target_modules": "all-linear", "exclude_modules": ["k_proj"]}]])
run(1 check least --model llama)
says("3 matched, 1 missing, 0 unexpected, 0 of a wrong shape\nmissing: \"model.layers.0.mlp.down_proj\"\n")
