// The scale bar and what the pointer is on.

export class Scale {
  constructor(bar, place, slide) {
    this.bar = bar;
    this.place = place;
    this.um = slide.mpp?.[0];
    this.slide = slide;
    bar.hidden = !this.um;
  }

  update(view) {
    if (!view || !this.um) return;
    const umPerPx = this.um / view.scale;
    const most = 160 * umPerPx;
    const power = 10 ** Math.floor(Math.log10(most));
    const um = Math.max(...[1, 2, 5].map((step) => step * power).filter((length) => length <= most));
    this.bar.querySelector("i").style.width = `${um / umPerPx}px`;
    this.bar.querySelector("span").textContent = um >= 1000 ? `${um / 1000} mm` : `${Number(um.toPrecision(2))} µm`;
  }

  // x, y in pixels of the slide; null when the pointer is elsewhere.
  at(x, y, view) {
    this.place.hidden = x === null;
    if (x === null) return;
    const magnification = this.slide.objective ? ` · ${Number((this.slide.objective * view.scale).toPrecision(2))}×` : "";
    this.place.textContent = `${Math.round(x)}, ${Math.round(y)}${magnification}`;
  }
}
