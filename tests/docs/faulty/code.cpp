int main() {
  // [one]
  int first = 1;
  // [two]
  int second = 2;
  // [/two]
  // [/one]
  return first + second;
}
