/** Observations side by side, of which one can be chosen: by pointer, or with the arrow keys and Enter. */

export class Strip {
  #names = [];

  /**
   * @param {HTMLElement} element
   * @param {string} label
   * @param {any} view Of `views.js`.
   * @param {(row: number) => void} choose
   */
  constructor(element, label, view, choose) {
    this.element = element;
    this.view = view;
    this.choose = choose;
    element.className = `strip ${view.kind}`;
    element.setAttribute("role", "group");
    element.setAttribute("aria-label", label);
    element.addEventListener("keydown", (event) => this.#move(event));
  }

  /**
   * @param {ArrayLike<number>} x
   * @param {string[]} names Of each observation.
   */
  show(x, names) {
    this.x = x;
    this.#names = names;
    while (this.element.children.length < names.length) this.#add(this.element.children.length);
    while (this.element.children.length > names.length) this.element.lastChild.remove();
    this.repaint();
  }

  repaint() {
    [...this.element.children].forEach((button, row) => {
      const canvas = button.firstChild;
      this.view.paint(canvas, this.x, row);
      this.view.describe(canvas, this.#names[row], this.x, row);
      button.title = this.#names[row];
    });
  }

  #add(row) {
    const button = document.createElement("button");
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    button.type = "button";
    button.tabIndex = row === 0 ? 0 : -1;
    button.append(canvas);
    button.addEventListener("click", () => this.choose(row));
    this.element.append(button);
  }

  /** One stop for the Tab key, whose place the arrows move. */
  #move(event) {
    const buttons = [...this.element.children];
    const at = buttons.indexOf(event.target.closest("button"));
    const columns = buttons.filter((button) => button.offsetTop === buttons[0].offsetTop).length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at, End: buttons.length - 1 - at };
    const next = buttons[at + steps[event.key]];
    if (!next) return;
    event.preventDefault();
    buttons[at].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}
