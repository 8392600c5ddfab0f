// SPDX-License-Identifier: MIT
// Fine-tunes a language model on a CPU and talks to it: the command line.
#include "commands.hpp"
#include "method.hpp"

#include <CLI/CLI.hpp>

#include <cstdio>
#include <exception>
#include <functional>
#include <iostream>
#include <new>
#include <string>

namespace {

using namespace llm;

struct Commands {
  TrainOptions train;
  GenerateOptions generate;
  EvaluateOptions evaluate;
  BenchOptions bench;
};

void add_model(CLI::App& command, ModelOptions& model, bool takes_adapter) {
  command
      .add_option("--model", model.model,
                  "a folder of transformers (config.json, model.safetensors, tokenizer.json), or a .gguf file")
      ->required();
  if (takes_adapter) command.add_option("--adapter", model.adapter, "a folder of PEFT, or an adapter GGUF");
  command.add_option("--base", model.base, "how the frozen weights are held: float, or bf16 in half of the memory")
      ->check(CLI::IsMember({"float", "bf16"}))
      ->capture_default_str();
  command.add_option("--threads", model.threads, "0: one for each core")->check(CLI::Range(0, 1024));
}

std::string method_names() {
  std::string text = "one of";
  for (const Method& method : methods) text += "\n  " + std::string(method.name) + ": " + std::string(method.about);
  return text;
}

void define_train(CLI::App& command, TrainOptions& train) {
  const auto positive = CLI::Range(Index{1}, Index{1} << 20);
  const auto finite = CLI::Range(0.0, 1e9);
  add_model(command, train.model, false);
  command.add_option("--text", train.text, "a text, or JSON lines of {\"prompt\", \"completion\"}")->required();
  command.add_option("--out", train.out, "the folder of the run")->required();
  command.add_option("--method", train.method, method_names())->capture_default_str();
  command
      .add_option("--targets", train.targets, "ends of names with commas, as q_proj,v_proj; default all linear layers")
      ->delimiter(',');
  command.add_option("--rank", train.rank, "r")->check(positive)->capture_default_str();
  command.add_option("--alpha", train.alpha, "s = alpha / r")->check(CLI::Range(1e-12, 1e9))->capture_default_str();
  command.add_option("--rate", train.learning_rate, "the learning rate; default the method's")
      ->check(CLI::Range(1e-12, 1e9));
  command.add_option("--schedule", train.schedule, "of the rate")
      ->check(CLI::IsMember({"cosine", "linear", "constant"}))
      ->capture_default_str();
  command.add_option("--warmup", train.warmup, "share of the steps")
      ->check(CLI::Range(0.0, 0.9))
      ->capture_default_str();
  command.add_option("--weight-decay", train.weight_decay, "decoupled")->check(finite)->capture_default_str();
  command.add_option("--clip", train.clip, "the largest norm of all gradients together; 0: none")
      ->check(finite)
      ->capture_default_str();
  command.add_option("--length", train.length, "tokens of a sequence")->check(positive)->capture_default_str();
  command.add_option("--batch", train.batch, "sequences at once")->check(positive)->capture_default_str();
  command.add_option("--accumulate", train.accumulate, "batches for one step")->check(positive)->capture_default_str();
  auto* steps = command.add_option("--steps", train.steps, "of the optimizer; default by epochs")->check(positive);
  command.add_option("--epochs", train.epochs, "times through the text")
      ->check(CLI::Range(1e-12, 1e9))
      ->excludes(steps)
      ->capture_default_str();
  command.add_option("--validation", train.validation, "share of the sequences")
      ->check(CLI::Range(1e-6, 0.999))
      ->capture_default_str();
  command.add_option("--evaluate-every", train.evaluate_every, "steps; 0: before and after")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--save-every", train.save_every, "steps between checkpoints")
      ->check(positive)
      ->capture_default_str();
  command.add_option("--gradient-batches", train.gradient_batches, "what LoRA-GA looks at")
      ->check(positive)
      ->capture_default_str();
  command.add_option("--seed", train.seed, "of the start and of the order")->capture_default_str();
  command.add_flag("--recompute", train.recompute, "keep the input of each block alone: less memory, more time");
  auto* resume =
      command.add_flag("--resume", train.resume, "go on from the checkpoint in --out, with the same options");
  command.add_flag("--overwrite", train.overwrite, "begin anew in --out")->excludes(resume);
}

void define_generate(CLI::App& command, GenerateOptions& generate) {
  add_model(command, generate.model, true);
  command.add_option("--prompt", generate.prompt, "the text to go on with")->required();
  command.add_flag("--chat", generate.chat, "the prompt is a message to an assistant (ChatML)");
  command.add_flag("--ids", generate.ids, "print the new tokens as numbers, past the end of the text too");
  command.add_option("--tokens", generate.tokens, "at most, and no more than the model's context has room for")
      ->capture_default_str();
  command.add_option("--temperature", generate.temperature, "0: always the likeliest token")->capture_default_str();
  command.add_option("--top-p", generate.top_p, "draw from the likeliest tokens that have this share")
      ->capture_default_str();
  command.add_option("--seed", generate.seed, "of the draws")->capture_default_str();
}

void define_evaluate(CLI::App& command, EvaluateOptions& evaluate) {
  add_model(command, evaluate.model, true);
  command.add_option("--text", evaluate.text, "a text, or JSON lines of {\"prompt\", \"completion\"}")->required();
  command.add_option("--length", evaluate.length, "tokens of a sequence")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--batch", evaluate.batch, "sequences at once")->check(CLI::PositiveNumber)->capture_default_str();
  command.add_option("--validation", evaluate.validation, "only the share that `train` would validate with")
      ->check(CLI::Range(0.0, 0.999));
  command.add_option("--seed", evaluate.seed, "of that share, for JSON lines")->capture_default_str();
}

void define_bench(CLI::App& command, BenchOptions& bench) {
  add_model(command, bench.model, false);
  command.add_option("--sequences", bench.sequences, "at once")->check(CLI::PositiveNumber)->capture_default_str();
  command.add_option("--length", bench.length, "tokens of each")->check(CLI::PositiveNumber)->capture_default_str();
  command.add_option("--rank", bench.rank, "of the adapters")->check(CLI::PositiveNumber)->capture_default_str();
  command.add_option("--steps", bench.steps, "that are timed, after two")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_flag("--recompute", bench.recompute, "as in `train`");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Fine-tunes a language model of the Llama family on a CPU with low-rank adapters, and talks to it.",
               "llm"};
  app.require_subcommand(1);
  app.footer("Ends with 0; 1 for wrong options or input; 128 + the signal after Ctrl-C, when --resume goes on.");
  Commands all;
  std::function<int()> run;
  const auto add = [&](const char* name, const char* text, auto& options, auto function) {
    auto* command = app.add_subcommand(name, text);
    command->callback([&options, &run, function] { run = [&options, function] { return function(options); }; });
    return command;
  };
  define_train(*add("train", "an adapter on a text", all.train, train), all.train);
  define_generate(*add("generate", "text that goes on from a prompt", all.generate, generate), all.generate);
  define_evaluate(*add("evaluate", "loss and perplexity of a text", all.evaluate, evaluate), all.evaluate);
  define_bench(*add("bench", "the speed of training, as JSON", all.bench, bench), all.bench);
  try {
    app.parse(argc, argv);
    const int status = run();
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      throw lora::IoError("standard output: must take what is printed, got an error");
    }
    return status;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 1;
  } catch (const std::bad_alloc&) {
    std::cerr << "llm: memory: there must be more of it; try --base bf16, a smaller --batch or a shorter --length\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "llm: " << error.what() << '\n';
    return 1;
  }
}
