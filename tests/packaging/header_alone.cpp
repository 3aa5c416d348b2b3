// SPDX-License-Identifier: MIT
// The generated files beside this one hold the includes; that they compile and link is the test.
int main() {}
