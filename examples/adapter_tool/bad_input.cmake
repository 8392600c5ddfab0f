# SPDX-License-Identifier: MIT
# Wrong command lines end with 2 and bad files with 3, each with a message that names the fault and leaves no file.
include(${CMAKE_CURRENT_LIST_DIR}/run.cmake)

function(refused status message)
  file(GLOB_RECURSE before ${FOLDER}/* ${FOLDER}/.*)
  run(${status} ${ARGN})
  string(FIND "${printed}" "${message}" position)
  list(JOIN ARGN " " arguments)
  if(position EQUAL -1)
    message(FATAL_ERROR "adapter_tool ${arguments}\nexpected '${message}', got:\n${printed}")
  endif()
  if(NOT status EQUAL 2 AND NOT printed MATCHES "^adapter_tool: [^\n]*\n$")
    message(FATAL_ERROR "adapter_tool ${arguments}\nexpected one line, got:\n${printed}")
  endif()
  file(GLOB_RECURSE after ${FOLDER}/* ${FOLDER}/.*)
  if(NOT after STREQUAL before)
    message(FATAL_ERROR "adapter_tool ${arguments}\nmust leave no file, got\n${after}\nafter\n${before}")
  endif()
endfunction()

refused(2 "A subcommand is required")
refused(2 "ADAPTER is required" inspect)
refused(2 "The following argument was not expected" inspect llama_adapter gpt2_adapter)
refused(2 "--type: q4_0 not in {f32,f16,bf16}" convert llama_adapter out --type q4_0)
refused(2 "--base excludes --config" convert llama_adapter out.gguf --base a --config b)
refused(2 "--base or --config must be given" convert llama_adapter out.gguf)
refused(2 "--portable: goes with a PEFT directory" convert llama_adapter out.gguf --portable --config llama)
refused(2 "--type: must be f32 or f16 for a GGUF file" convert llama_adapter out.gguf --type bf16 --config llama)
refused(2 "--base or --config must be given" convert ${ADAPTERS}/gguf/adapter.gguf out)
refused(2 "--rank or --energy must be given" extract llama/model.safetensors llama_merged.safetensors out)
refused(2 "--energy: Value 2 not in range" extract llama/model.safetensors llama_merged.safetensors out --energy 2)
refused(2 "--scale: must be finite" merge llama_adapter llama/model.safetensors out.safetensors --scale inf)

refused(3 "nowhere: must exist, got No such file or directory" inspect nowhere)
refused(3 "llama/adapter_config.json: must open for reading, got No such file or directory" check llama)
refused(3 "must be the directory of a PEFT adapter or an adapter GGUF" inspect llama/model.safetensors)
refused(3 "fields.gguf: key \"general.type\" must be string, got no such key" inspect ${ADAPTERS}/gguf/fields.gguf)
refused(3 "a module of the gpt2 architecture must be" convert llama_adapter out.gguf --config gpt2)
refused(3 "\"general.architecture\" must be \"gpt2\", got \"llama\"" convert ${ADAPTERS}/gguf/adapter.gguf out
  --config gpt2)
refused(3 "needs a directory that opens" merge gpt2_adapter gpt2/model.safetensors nowhere/out.safetensors)
refused(3 "must be new or a regular file, got a directory" merge gpt2_adapter gpt2/model.safetensors llama)
refused(3 "must be a directory or be made one" convert gpt2_adapter llama/model.safetensors)
refused(3 "down_proj: values must fit F16" merge llama_adapter llama/model.safetensors out.safetensors --scale 1e5)
refused(3 "must be finite when merged" merge llama_adapter llama/model.safetensors out.safetensors --scale 1e300)

refused(3 "llama_parts: must be new or an empty folder" merge llama_adapter llama_parts llama_parts)
refused(3 "must be new or an empty folder" merge llama_adapter llama_parts llama_merged.safetensors)
refused(3 "nowhere/out: needs a directory that opens" merge llama_adapter llama_parts nowhere/out)
refused(3 "llama: must be a safetensors file or a folder with model.safetensors.index.json, got a folder without"
  merge llama_adapter llama out)
refused(3 "down_proj: values must fit F16" merge llama_adapter llama_parts out --scale 1e5)
refused(1 "every module must have its weight, got 0 matched, 0 missing, 6 unexpected, 0 of a wrong shape; unexpected: "
  merge llama_adapter gpt2/model.safetensors out.safetensors)
refused(1 "both models must have the same tensors" extract llama/model.safetensors gpt2/model.safetensors out --rank 1)
refused(1 "--target: v_proj must name a weight of the model"
  extract llama/model.safetensors llama_merged.safetensors out --rank 1 --target q_proj,v_proj)
refused(1 "a weight of a linear layer must differ" extract llama/model.safetensors llama/model.safetensors out --rank 1)

# Square weights of which nothing tells which way round they lie: no guess.
set(square "must be [in, out] or [out, in]: ")
set(name "its name is one of GPT-2's Conv1D, ")
refused(3 "square weight of h.0.attn.c_proj ${square}${name}and no other weight of its block tells"
  extract gpt2_square/model.safetensors gpt2_square/merged.safetensors out --rank 1 --prefix transformer.)
file(READ ${FOLDER}/gpt2_square/adapter/adapter_config.json config)
string(REPLACE "true" "false" turned "${config}")
file(WRITE ${FOLDER}/gpt2_square/adapter/adapter_config.json "${turned}")
set(message "model.safetensors: the square weight of \"transformer.h.0.attn.c_proj\" ${square}${name}fan_in_fan_out is")
refused(3 "${message} false; set it to true if the model is a GPT-2"
  merge gpt2_square/adapter gpt2_square/model.safetensors out.safetensors)
run(3 check gpt2_square/adapter --model gpt2_square/model.safetensors)
file(READ ${FOLDER}/llama_adapter/adapter_config.json config)
string(REPLACE "\"peft_type\"" "\"fan_in_fan_out\": true, \"peft_type\"" turned "${config}")
file(WRITE ${FOLDER}/llama_adapter/adapter_config.json "${turned}")
set(message "self_attn.q_proj\" ${square}fan_in_fan_out is true, its name is none of GPT-2's Conv1D")
refused(3 "model.safetensors: the square weight of \"model.layers.0.${message}"
  merge llama_adapter llama/model.safetensors out.safetensors)
refused(3 "llama_parts: the square weight of \"model.layers.0.${message}" merge llama_adapter llama_parts out)
file(WRITE ${FOLDER}/llama_adapter/adapter_config.json "${config}")

# Configs of a base.
foreach(config "[]|must be a JSON object" "{|must be UTF-8 JSON" "{}|model_type must be"
    "{\"model_type\": 3}|model_type must be"
    "{\"model_type\": \"bert\"}|model_type must be \"llama\" or \"gpt2\", got \"bert\""
    "{\"model_type\": \"llama\"}|num_attention_heads must be"
    "{\"model_type\": \"llama\", \"num_attention_heads\": -1}|num_attention_heads must be"
    "{\"model_type\": \"llama\", \"num_attention_heads\": 5}|for each of 5 heads"
    "{\"model_type\": \"llama\", \"num_attention_heads\": 2, \"num_attention_heads\": 1}|must stand once, got a second"
    "{\"model_type\": \"gpt2\", \"tie_word_embeddings\": 1}|tie_word_embeddings must be true or false")
  string(FIND "${config}" "|" middle)
  string(SUBSTRING "${config}" 0 ${middle} text)
  math(EXPR middle "${middle} + 1")
  string(SUBSTRING "${config}" ${middle} -1 message)
  file(WRITE ${FOLDER}/broken/config.json "${text}")
  refused(3 "${message}" convert llama_adapter out.gguf --config broken)
endforeach()

# Packed weights, as a base in 4 bits has them, are no numbers to subtract.
foreach(byte 1 2)
  execute_process(COMMAND printf "\\103\\0\\0\\0\\0\\0\\0\\0%s\\001\\00${byte}"
    "{\"v_proj.weight\":{\"dtype\":\"U8\",\"shape\":[2,1],\"data_offsets\":[0,2]}}"
    OUTPUT_FILE ${FOLDER}/packed${byte}.safetensors)
endforeach()
refused(3 "packed1.safetensors: tensor \"v_proj.weight\": type must be F64, F32, F16 or BF16, got U8"
  extract packed1.safetensors packed2.safetensors out --rank 1)

# Configs of an adapter: targets that are no pattern; what a file says does not reach the terminal as it is.
file(READ ${FOLDER}/gpt2_adapter/adapter_config.json config)
file(COPY ${FOLDER}/gpt2_adapter DESTINATION ${FOLDER}/targets)
string(REGEX REPLACE "\"target_modules\": \\[[^]]*\\]"
  "\"target_modules\": \"(\\\\u001b[31m\\\\nx\"" changed "${config}")
file(WRITE ${FOLDER}/targets/gpt2_adapter/adapter_config.json "${changed}")
refused(3 "targets/gpt2_adapter/adapter_config.json: plan: pattern must be a regular expression, got (?[31m?x ("
  check targets/gpt2_adapter --model gpt2)

# Indices of a model in several files.
foreach(index "[]|must be a JSON object" "{}|weight_map must name a file for each tensor, got none"
    "{\"weight_map\": []}|weight_map must name" "{\"weight_map\": {}}|weight_map must name"
    "{\"weight_map\": {\"a\": 3}}|the file of \"a\" must be a name that ends with .safetensors, got 3"
    "{\"weight_map\": {\"a\": \"../x.safetensors\"}}|ends with .safetensors, got \"../x.safetensors\""
    "{\"weight_map\": {\"a\": \"x.safetensors\"}}|x.safetensors: must open for reading"
    "{\"weight_map\": {\"a\": \"model-00001-of-00002.safetensors\"}}|must hold the tensor \"a\"")
  string(FIND "${index}" "|" middle)
  string(SUBSTRING "${index}" 0 ${middle} text)
  math(EXPR middle "${middle} + 1")
  string(SUBSTRING "${index}" ${middle} -1 message)
  file(WRITE ${FOLDER}/llama_parts/model.safetensors.index.json "${text}")
  refused(3 "${message}" merge llama_adapter llama_parts out)
endforeach()

# Files that end too early; the library's own tests do this at every byte.
file(COPY ${ADAPTERS}/gguf/adapter.gguf DESTINATION ${FOLDER})
file(COPY ${FOLDER}/gpt2_adapter DESTINATION ${FOLDER}/broken)
foreach(size 0 3 7 100 700)
  execute_process(COMMAND head -c ${size} ${ADAPTERS}/gguf/adapter.gguf OUTPUT_FILE ${FOLDER}/short.gguf)
  execute_process(COMMAND head -c ${size} ${FOLDER}/gpt2/model.safetensors OUTPUT_FILE ${FOLDER}/short.safetensors)
  execute_process(COMMAND head -c ${size} ${FOLDER}/gpt2_adapter/adapter_model.safetensors
    OUTPUT_FILE ${FOLDER}/broken/gpt2_adapter/adapter_model.safetensors)
  refused(3 "short.gguf: " inspect short.gguf)
  refused(3 "short.safetensors: " merge gpt2_adapter short.safetensors out.safetensors)
  refused(3 "adapter_model.safetensors: " convert broken/gpt2_adapter out)
endforeach()

if(EXISTS /dev/full)
  execute_process(COMMAND ${PROGRAM} inspect llama_adapter WORKING_DIRECTORY ${FOLDER} OUTPUT_FILE /dev/full
    ERROR_VARIABLE printed RESULT_VARIABLE status)
  if(NOT status EQUAL 3 OR NOT printed MATCHES "standard output: must take the report")
    message(FATAL_ERROR "expected a report of the full disk, got ${status} and:\n${printed}")
  endif()
endif()
